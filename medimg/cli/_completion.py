"""``medimg completion``: a script by which a shell completes commands and options."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from medimg.cli._options import Commands, add_command

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["add_completion"]

_EPILOG = """\
bash:  medimg completion bash > ~/.local/share/bash-completion/completions/medimg
zsh:   medimg completion zsh > a folder of $fpath, as _medimg
fish:  medimg completion fish > ~/.config/fish/completions/medimg.fish
"""


def add_completion(commands: Commands, make_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add ``medimg completion``, of the commands of a parser."""

    def run(args: argparse.Namespace) -> int:
        print(_WRITERS[args.shell](_list_commands(make_parser())), end="")
        return 0

    parser = add_command(
        commands,
        "completion",
        run,
        "print a script that completes commands and options in a shell",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=tuple(_WRITERS))


class _Command:
    """Name, help text, options, and the choices of those that have some."""

    def __init__(self, name: str, text: str, parser: argparse.ArgumentParser) -> None:
        self.name, self.text = name, text
        actions = parser._actions
        self.options = [flag for action in actions for flag in action.option_strings if flag.startswith("--")]
        self.choices = {
            flag: [str(c) for c in action.choices]
            for action in actions
            if action.choices
            for flag in action.option_strings
        }
        self.values = [str(c) for a in actions if a.choices and not a.option_strings for c in a.choices]


def _list_commands(parser: argparse.ArgumentParser) -> list[_Command]:
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    texts = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    return [
        _Command(name, texts.get(name, ""), sub) for name, sub in commands.choices.items() if name in texts
    ]


def _write_bash(commands: list[_Command]) -> str:
    cases = []
    for command in commands:
        values = "".join(f'      {f}) words="{" ".join(c)}" ;;\n' for f, c in command.choices.items())
        inner = f'    case "$previous" in\n{values}    esac\n' if values else ""
        options = " ".join([*command.options, *command.values])
        cases.append(f'  {command.name})\n    options="{options}"\n{inner}    ;;\n')
    names = " ".join(command.name for command in commands)
    return (
        "_medimg() {\n"
        '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"\n'
        '  local options="" words=""\n'
        '  if [ "$COMP_CWORD" -eq 1 ]; then\n'
        f'    COMPREPLY=($(compgen -W "{names} --help --version" -- "$current"))\n'
        "    return\n  fi\n"
        '  case "${COMP_WORDS[1]}" in\n' + "".join(cases) + "  esac\n"
        '  if [ -n "$words" ]; then\n'
        '    COMPREPLY=($(compgen -W "$words" -- "$current"))\n'
        "  else\n"
        '    COMPREPLY=($(compgen -W "$options" -- "$current"))\n'
        "  fi\n"
        "}\n"
        # files are completed if nothing else is
        "complete -o bashdefault -o default -F _medimg medimg\n"
    )


def _write_zsh(commands: list[_Command]) -> str:
    described = " ".join(f"'{command.name}:{command.text}'" for command in commands)
    cases = []
    for command in commands:
        values = "".join(
            f"        {f}) compadd -- {' '.join(c)}; return ;;\n" for f, c in command.choices.items()
        )
        inner = f'      case "$words[CURRENT-1]" in\n{values}      esac\n' if values else ""
        plain = f"      compadd -- {' '.join(command.values)}\n" if command.values else ""
        cases.append(
            f"    {command.name})\n{inner}{plain}      options=({' '.join(command.options)})\n      ;;\n"
        )
    return (
        "#compdef medimg\n_medimg() {\n  local -a commands options\n"
        f"  commands=({described})\n"
        "  if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
        '  case "$words[2]" in\n' + "".join(cases) + "  esac\n"
        '  if [[ "$words[CURRENT]" == -* ]]; then compadd -- $options; else _files; fi\n'
        '}\n_medimg "$@"\n'
    )


def _write_fish(commands: list[_Command]) -> str:
    lines = []
    for command in commands:
        lines.append(f"complete -c medimg -n __fish_use_subcommand -f -a {command.name} -d '{command.text}'")
        within = f"complete -c medimg -n '__fish_seen_subcommand_from {command.name}'"
        for flag in command.options:
            choices = command.choices.get(flag)
            lines.append(f"{within} -l {flag[2:]}" + (f" -x -a '{' '.join(choices)}'" if choices else ""))
        if command.values:
            lines.append(f"{within} -f -a '{' '.join(command.values)}'")
    return "\n".join(lines) + "\n"


_WRITERS = {"bash": _write_bash, "zsh": _write_zsh, "fish": _write_fish}
