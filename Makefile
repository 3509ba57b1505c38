# make run     a web page at http://127.0.0.1:7860 (first time: makes .venv and installs)
# make test    every test; make test ARGS="-m 'not compact and not browser'" for a few seconds' worth
# make lint    ruff and pyright
# make bench   the table of README's figures
#
# PYTHON=python3.12 chooses the interpreter, ARGS="--port 8000" goes on to the command.
# On Linux without a GPU, PyPI's torch brings 3 GB of CUDA with it: README says how to have the CPU build.

PYTHON ?= $(firstword $(foreach name,python3 python3.12 python3.11 python3.13 python3.10 python,$(if $(shell \
	$(name) -c "import sys; print((3, 10) <= sys.version_info[:2] <= (3, 13) or '')" 2>/dev/null),$(name))))
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin

.PHONY: run test bench lint install

run: $(VENV)/.installed
	@$(BIN)/python app.py $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks $(ARGS)

# gradio writes the types of its components' events when it is first imported; pyright wants them.
lint: $(VENV)/.installed-dev
	@$(BIN)/python -c "import gradio"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

install: $(VENV)/.installed

$(BIN)/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))" || { \
	echo "Parley needs Python 3.10, 3.11, 3.12 or 3.13, and $(or $(PYTHON),no python3 here) is not one of them. \
	Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	echo "The virtual environment could not be made. On Debian and Ubuntu: apt install python3-venv"; \
	rm -rf $(VENV); exit 1; }

# An install that was cut short leaves no stamp, and the next make goes on with it.
$(VENV)/.installed: requirements.txt | $(BIN)/python
	@echo "Installing what Parley needs into $(VENV): a few minutes, the first time only"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
