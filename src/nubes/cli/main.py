"""`nubes`: the command line's entry. What is not needed for a command is not imported for it."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command in `sys.argv` and exits with its code."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        from nubes import __version__

        print(f"nubes {__version__}")
        return
    from nubes.cli import errors

    sys.exit(errors.exit_code_of(lambda: _command(arguments)))


def _command(arguments: list[str]) -> int:
    from nubes.cli.commands import app

    code = app(arguments, prog_name="nubes", standalone_mode=False)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
