"""What a user can put right: one sentence, exit code 2, no traceback."""


class RaygenesisError(ValueError):
    """A mistake in a file, a setting or a command. Its message names the thing, the value and the remedy."""


class SettingsError(RaygenesisError):
    """A setting is unknown, of the wrong type, or impossible together with another."""


class ScanError(RaygenesisError):
    """A scan cannot be read, or holds what the pipeline cannot use."""


class ClusterError(RaygenesisError):
    """The cluster lost what it was doing, again and again."""


class WorkspaceError(RaygenesisError):
    """A workspace is missing something, cannot be written, or was made by other settings."""


class PassingError(WorkspaceError):
    """A disk, a network or a server failed for longer than was waited for: nothing is known of what it holds."""


class WeightsError(RaygenesisError):
    """A file of weights is of another format or network than it should be, or is damaged."""


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
