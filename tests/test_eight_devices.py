"""What the default run checks on 8 simulated devices, and each error message that needs them, in one process.

The thorough tests of each of these modules check every kind of network, mesh and run.
"""

import pytest

from . import (
    test_audit_devices,
    test_devices,
    test_fit_devices,
    test_rbm_devices,
    test_saving_devices,
    test_streams,
    test_sweep_devices,
)
from .checks import in_a_folder

CHECKS = {
    "layers": (test_devices.check_rows, ["BatchNorm", "Dropout", "LSTM"]),
    "fit": (test_fit_devices.one_devices_numbers, "of few examples each", "Auto"),
    "mini-batches": (test_streams.on_eight, "Explicit"),
    "what fit sends": (test_fit_devices.what_is_sent,),
    "what a mini-batch sends": (test_streams.program,),
    "refused by fit": (test_fit_devices.refused,),
    "random numbers of a machine": (test_rbm_devices.random_numbers,),
    "refused by a machine": (test_rbm_devices.refusals,),
    "refused by a sweep": (test_sweep_devices.refusals,),
    "refused by the audit": (test_audit_devices.refusals,),
    "refused when loaded": (in_a_folder, test_saving_devices.without_its_mesh),
}


@pytest.mark.parametrize("name", CHECKS)
def test_on_eight_devices(name, found):
    assert found[name] is None, found[name]
