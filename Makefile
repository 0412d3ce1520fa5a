# Two commands do everything on a machine that has Python (3.11 or newer) and make:
#   make demo    install into .venv, write synthetic chest X-rays, train, evaluate, report
#   make test    install into .venv, lint, types, layers, tests, doctests, documentation

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUTPUT ?= demo-output
PYTEST_OPTIONS ?= -n 2 --dist worksteal
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# Without WEIGHTS the network is trained from random weights; WEIGHTS=path takes pretrained weights from a file,
# WEIGHTS=DEFAULT downloads them, and BACKBONE=name takes another network than resnet18.
DEMO = $(if $(WEIGHTS)$(BACKBONE),xray_classification.py $(if $(WEIGHTS),--weights "$(WEIGHTS)") \
    $(if $(BACKBONE),--backbone $(BACKBONE)),demo.py) --output $(OUTPUT)

.PHONY: demo test install lint types layers unit docs clean

demo: $(STAMP)
	$(BIN)/python examples/$(DEMO)

# side by side, the longest first; one thread in each process, as all cores are busy
test: $(STAMP)
	OMP_NUM_THREADS=1 $(MAKE) --jobs=3 --output-sync=target --no-print-directory unit types docs lint layers

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable ".[dev]"
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/pytest $(PYTEST_OPTIONS)

docs: $(STAMP)
	$(BIN)/sphinx-build -n -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) $(OUTPUT) docs/_build
