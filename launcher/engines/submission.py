"""What is asked of an engine, checked once for all of them.

Every text that comes into a job description has a pattern. A secret is named and never written: the engine has it in
its own store.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.files import read_bounded
from data.redaction import has_credentials
from launcher.bounded_yaml import MAX_CHARACTERS
from launcher.engines.placement import Placement
from launcher.errors import ConfigError
from launcher.processes.agent_command import SECRET_NAME
from launcher.recipe import Recipe
from launcher.recipe.cluster import VARIABLE
from launcher.recipe.kubernetes import NAME
from launcher.recipe.loading import find_recipe

# A name and "-node-0-0", which pods add, are a label of DNS: 63 characters.
MAX_NAME_CHARACTERS = 40
# [REGISTRY[:PORT]/]PATH[:TAG][@sha256:DIGEST]
IMAGE = re.compile(
    r"[a-z0-9]+([.-][a-z0-9]+)*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(@sha256:[0-9a-f]{64})?"
)
PRIORITY = re.compile(r"-?[0-9]{1,9}|[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
MAX_VALUE_CHARACTERS = 4096
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Variables by which processes find their place, or Python its programs: the engine and the image set them.
RESERVED = re.compile(
    r"(PET|SKYPILOT|SLURM|OMPI|PMI|PMIX|TORCHELASTIC|CHORUS|KUBERNETES|LD)_.*|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)"
    r"|MASTER_(ADDR|PORT)|PATH|PYTHON.*|BASH_ENV|ENV|IFS"
)
# A folder; it stands in job descriptions and on command lines.
FOLDER = re.compile(r"/[A-Za-z0-9_./@+=-]*")


@dataclass(frozen=True)
class Submission:
    """A run as the job of an engine. ConfigError for anything that cannot stand in a job description."""

    name: str
    recipe: Recipe
    # Of the recipe as it was given, a file's path or a built-in name, and the settings that change it.
    source: str
    settings: tuple[str, ...]
    run_dir: str
    nodes: int
    gpus_per_node: int | None = None
    image: str | None = None
    priority: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME_CHARACTERS or not NAME.fullmatch(self.name) or not self.name[0].isalpha():
            raise ConfigError(
                f"--name is {self.name[:80]!r}; a job's name has up to {MAX_NAME_CHARACTERS} lower-case letters, "
                "digits and dashes, and begins with a letter. Without --name it is that of the recipe."
            )
        if self.nodes < 1 or self.nodes > 65_536:
            raise ConfigError(f"--nodes is {self.nodes}; a job has 1 to 65536 nodes.")
        if self.gpus_per_node is not None and not 1 <= self.gpus_per_node <= 1024:
            raise ConfigError(
                f"--gpus-per-node is {self.gpus_per_node}; give 1 to 1024, or leave it out to train on processors."
            )
        if self.image is not None and not IMAGE.fullmatch(self.image):
            raise ConfigError(f"--image is {self.image[:80]!r}, which is no image, such as registry.org/team/chorus:1.")
        if self.priority is not None and not PRIORITY.fullmatch(self.priority):
            raise ConfigError(f"--priority is {self.priority[:80]!r}; give a number, or the name of a class.")
        for secret in self.secrets:
            # Named in full in no message: whoever writes NAME=VALUE has just shown a secret to a shell's history.
            if not VARIABLE.fullmatch(secret) and not NAME.fullmatch(secret):
                raise ConfigError(
                    f"--secret takes the name of a secret, and {secret.partition('=')[0][:80]!r} is followed by more "
                    "or is no name. Put the value into the engine's store, and name it here."
                )
        for name, value in self.environment.items():
            _check_variable(name, value)

    @property
    def processes_per_node(self) -> int:
        """Return how many processes each node has: one per GPU, or the recipe's share where there are none."""
        return self.gpus_per_node or max(1, self.recipe.cluster.processes // self.nodes)

    def placement(self) -> Placement:
        """Return the first node of the job as `chorus node` will find it, to try the recipe on."""
        return Placement("torchrun", 0, self.nodes, "node-0", processes_per_node=self.processes_per_node)

    def node_arguments(self, recipe: str, engine: str) -> list[str]:
        """Return the words of `chorus node` on every node of the job; `recipe` is the recipe's place there."""
        words = ["chorus", "node", recipe, "--run-dir", self.run_dir, "--engine", engine]
        for setting in self.settings:
            words += ["--set", setting]
        return words

    def recipe_text(self) -> str | None:
        """Return the file of the recipe, for the nodes to have it too; None for a built-in one, which they have."""
        path = find_recipe(self.source)
        if Path(self.source).suffix not in (".yaml", ".yml"):
            return None
        return read_bounded(path, 4 * MAX_CHARACTERS).decode("utf-8")


def read_environment(texts: Sequence[str]) -> dict[str, str]:
    """Return the variables of `NAME=VALUE` texts; ConfigError for what is none or looks like a secret."""
    variables = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not VARIABLE.fullmatch(name):
            raise ConfigError(f"--env takes NAME=VALUE, and {name[:80]!r} is no name of a variable with a value.")
        if name in variables:
            raise ConfigError(f"--env gives {name} twice. Give it once.")
        variables[name] = value
    return variables


def check_folder(run_dir: str, nodes: int, engine: str) -> None:
    """Refuse (ConfigError) a run folder that the nodes of a job could not share."""
    if "://" in run_dir:
        if has_credentials(run_dir):
            raise ConfigError("--run-dir is a URL with a secret in it. Give it without, and name the secret: --secret.")
        if nodes > 1:
            raise ConfigError(
                f"--run-dir is {run_dir[:80]}, and the {nodes} nodes of the job speak through files of the run folder, "
                f"which a store does not show at once. Give a folder on a volume (cluster.{engine}.volume)."
            )
        if CONTROL.search(run_dir) or any(character.isspace() for character in run_dir):
            raise ConfigError(f"--run-dir is {run_dir[:80]!r}, which no URL is.")
        return
    if not FOLDER.fullmatch(run_dir) or ".." in run_dir.split("/"):
        raise ConfigError(
            f"--run-dir is {run_dir[:80]!r}; on {engine} it is an absolute path as the nodes see it, of letters, "
            "digits and . _ / @ + = -."
        )


def _check_variable(name: str, value: str) -> None:
    if RESERVED.fullmatch(name):
        raise ConfigError(f"--env gives {name}, which the engine or the image sets. Leave it out.")
    if SECRET_NAME.search(name) or has_credentials(value):
        # The value is not shown: this message goes to terminals and logs.
        raise ConfigError(
            f"--env gives {name}, whose name or value speaks of a secret, and a job description is read by many. Put "
            "it into the engine's store and pass --secret NAME."
        )
    if len(value) > MAX_VALUE_CHARACTERS or CONTROL.search(value):
        raise ConfigError(
            f"--env gives {name} a value with more than {MAX_VALUE_CHARACTERS} characters, or with control characters "
            "or line ends in it. Give one line of text."
        )
