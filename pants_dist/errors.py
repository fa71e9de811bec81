"""What a user can mend. Everything else is our own mistake and keeps its traceback."""


class UserError(Exception):
    """One line: what is wrong, which value, where, and what to do. The command line prints it and exits with 2."""


class DamagedError(UserError):
    """Bytes on disk are not what was written: names the case, the array and the chunk, or the file."""
