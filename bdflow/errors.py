"""The one error users of bdflow meet: it says where, what was found, what was expected and what to do."""


class InputError(ValueError):
    """Bad input: a file, a key of the configuration or a trial that cannot be used.

    Parameters
    ----------
    where : the file, key or trial it is about.
    found, expected : what stood there and what should have.
    meaning : what that means for the user (optional).
    action : what to do about it.
    """

    def __init__(self, where: object, *, found: str, expected: str, action: str, meaning: str = "") -> None:
        self.where = str(where)
        self.found, self.expected, self.meaning, self.action = found, expected, meaning, action
        lines = [f"{self.where}: found {found}; expected {expected}."]
        if meaning:
            lines.append(meaning)
        lines.append(f"What to do: {action}")
        super().__init__("\n".join(lines))

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return _rebuild, (type(self), self.where, self.found, self.expected, self.meaning, self.action)


def _rebuild(kind: type[InputError], where: str, found: str, expected: str, meaning: str, action: str) -> InputError:
    return kind(where, found=found, expected=expected, meaning=meaning, action=action)
