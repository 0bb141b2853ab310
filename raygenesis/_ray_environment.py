"""Ray's settings that it reads once, when it is first imported."""

import os
import secrets
import sys

from raygenesis.cluster.environment import is_joined

if "ray" not in sys.modules:
    # Ray polls its training workers this often; a worker's `report` waits for the poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # A pipeline that cannot get the CPUs it needs becomes an error instead of a silent wait; a cluster may have to
    # start machines first.
    patience = "1800" if is_joined() else "300"
    os.environ.setdefault("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", patience)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray Tune's own banner; a sweep prints its table.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would return at Ctrl-C as if all trials had ended.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    if not is_joined() and "RAY_AUTH_MODE" not in os.environ:
        # Ray's C++ core reports harmless retries as errors on the driver's terminal; its log files are elsewhere.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # A Ray started on this machine accepts only its own process's token, which ends with it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
