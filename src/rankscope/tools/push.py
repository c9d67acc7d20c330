"""Send an exported folder to the Hugging Face hub, after showing what would be sent."""

from dataclasses import dataclass
from pathlib import Path

from rankscope.errors import UserError, first_line
from rankscope.formatting import byte_size, count


@dataclass(frozen=True, slots=True)
class Upload:
    folder: Path
    repository: str
    private: bool

    @property
    def files(self) -> list[tuple[str, int]]:
        """Name and bytes of every file, in the order of names."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [(p.relative_to(self.folder).as_posix(), p.stat().st_size) for p in paths]

    def lines(self) -> list[str]:
        """What would be sent, for people."""
        files = self.files
        total = byte_size(sum(size for _, size in files))
        access = "private" if self.private else "public: everybody can read it"
        return [
            *(f"  {byte_size(size):>9}  {name}" for name, size in files),
            f"{count(len(files), 'file')}, {total}, to https://huggingface.co/{self.repository} "
            f"({access})",
        ]

    def send(self) -> str:
        """Create the repository if it does not exist, upload the folder, and return its address.

        An existing repository keeps its visibility. Raises UserError: no connection, or the hub
        refused.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        try:
            api.create_repo(self.repository, private=self.private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=self.repository,
                folder_path=self.folder,
                commit_message="Upload from Rankscope",
            )
        except Exception as error:  # whatever the HTTP library raises without a connection
            raise UserError(
                f"--push {self.repository}: the upload failed ({first_line(error)}); check the "
                f"connection and the token's rights. The export is in {self.folder}"
            ) from error
        return str(commit.repo_url)


def check_repository(repository: str) -> None:
    """Raise UserError unless it is a name that the hub accepts."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push {repository!r}: expected OWNER/NAME ({error})") from error


def check_token(repository: str) -> None:
    """Raise UserError if this machine has no token for the hub."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(
            f"--push {repository}: there is no token for the hub; log in with 'hf auth login' or "
            "set HF_TOKEN"
        )
