"""A shell line of a notebook (`!command`) that fails is an error of its cell."""

from typing import Any


def raise_on_failure(shell: Any) -> None:
    """Make an IPython shell raise when a shell line ends with an exit code that is not 0."""

    def checked(run: Any) -> Any:
        def call(command: str, *arguments: Any, **options: Any) -> Any:
            result = run(command, *arguments, **options)
            code = shell.user_ns.get("_exit_code", 0)
            if code:
                raise RuntimeError(f"the shell line `{command}` ended with exit code {code}")
            return result

        return call

    shell.system = checked(shell.system)
