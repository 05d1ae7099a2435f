"""Removes a company's socket file after the supervisor has died, however it died.

Run by itself, with nothing imported but the interpreter: DESCRIPTOR PATH DEVICE INODE. The descriptor is
the read end of a pipe that only the supervisor can write to, so it ends with the supervisor. A file
that is no longer the same one belongs to a company that was started since, and stays.
"""

import contextlib
import os
import sys


def main(descriptor: int, path: str, device: int, inode: int) -> None:
    """Wait for the end, then clean up."""
    while os.read(descriptor, 1):
        pass
    remove(path, device, inode)


def remove(path: str, device: int, inode: int) -> None:
    """Unlink the file if it is still that one."""
    with contextlib.suppress(FileNotFoundError):
        file = os.lstat(path)
        if (file.st_dev, file.st_ino) == (device, inode):
            os.unlink(path)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
