"""The JSON file of a stage's folder that says what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import DataError


class Contents(StrictModel):
    """Base of what stands in such a file.

    Attributes:
        stage: the stage whose folder holds it.
        what: what it describes, for messages.
        file_name: its name.
    """

    stage: ClassVar[str]
    what: ClassVar[str]
    file_name: ClassVar[str]

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the file of a stage's folder.

        Raises:
            DataError: the folder has none, or one that is damaged or of another version.
        """
        path = directory / cls.file_name
        if not path.is_file():
            raise DataError(
                f"no {cls.stage} here",
                where=path,
                expected=f"the output of the {cls.stage} stage",
                fix=f"run `tsugiki {cls.stage} CONFIG` first",
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise DataError(f"unreadable {cls.what}", where=path, got=str(error)) from error

    def save(self, directory: Path) -> None:
        """Write the file."""
        (directory / self.file_name).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
