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

.PHONY: demo test install lint types layers unit docs fuzz clean

demo: $(STAMP)
	$(BIN)/python examples/$(DEMO)

# side by side, the longest first; one thread in each process, as all cores are busy
test: $(STAMP)
	OMP_NUM_THREADS=1 $(MAKE) --jobs=3 --output-sync=target --no-print-directory unit types docs lint layers

install: $(STAMP)

# again if the compiled core has changed
$(STAMP): pyproject.toml $(wildcard medimg/_native/src/*.cpp medimg/_native/src/*.h) medimg/_native/src/CMakeLists.txt
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

# needs clang; FUZZ_SECONDS=3600 before a release, with headers of real files in FUZZ_CORPUS
FUZZ_SECONDS ?= 60
FUZZ_CORPUS  ?= build/fuzz/corpus
FUZZED       := header_walk header_scan header_values item_walk slice_reading
fuzz: $(FUZZED:%=fuzz-%) fuzz-decoding

NATIVE       := medimg/_native/src
fuzz-%:
	mkdir -p build/fuzz $(FUZZ_CORPUS)
	clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
	  tests/_native/fuzzing/fuzz_$*.cpp $(addprefix $(NATIVE)/,header_walk.cpp header_scan.cpp header_values.cpp item_walk.cpp files.cpp slice_reading.cpp) \
	  -pthread -o build/fuzz/$*
	build/fuzz/$* -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -artifact_prefix=build/fuzz/ $(FUZZ_CORPUS)

# no headers, so that it begins with nothing
fuzz-decoding:
	mkdir -p build/fuzz/frames
	clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
	  tests/_native/fuzzing/fuzz_decoding.cpp $(addprefix $(NATIVE)/,rle.cpp palette.cpp) -o build/fuzz/decoding
	build/fuzz/decoding -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -artifact_prefix=build/fuzz/ build/fuzz/frames

clean:
	rm -rf $(VENV) $(OUTPUT) docs/_build
