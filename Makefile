# `make help` lists the targets. Everything runs in .venv, which is made once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
ENGINE ?= local
NEEDED := $(READY) $(if $(filter ray,$(ENGINE)),.venv/.ray)
# nbstripout keeps papermill's metadata unless told; .pre-commit-config.yaml says the same.
STRIP := nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill"

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 2000
export OPENBLAS_NUM_THREADS := 1
export MKL_CBWR := AUTO,STRICT
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 1099511627776

.PHONY: help env report publish fresh smoke studies study test torture lint bench clean distclean

help:
	@echo "make env        .venv alone; the others make it where it is missing"
	@echo "make report     models, data, all experiments, runs/warp_report.html; goes on where it stopped"
	@echo "make publish    the same, and the page and picture of the repository, reports/, made anew"
	@echo "make fresh      the same, with all numbers made anew that other code of the method made"
	@echo "make smoke      the same at tiny sizes, in runs/smoke"
	@echo "make studies    what the studies of params/study_*.yaml still lack in reports/studies/: 15 to 20 hours in all"
	@echo "make study NAME=merge   one of them; ARGS=--dry-run says what that would compute, and how long"
	@echo "make test       all tests"
	@echo "make torture    programs killed, interrupted and damaged at 60 moments; 40 minutes"
	@echo "make lint       ruff, pyright, notebooks stored without outputs"
	@echo "make bench      TRL and mergekit into environments of their own, then reports/bench/performance.json"
	@echo "make clean      remove caches and runs/smoke"
	@echo "make distclean  remove .venv and all of runs/ too"

env: $(NEEDED)

report: $(NEEDED)
	@$(BIN)/python -m warp_core.world.assets > /dev/null
	@$(BIN)/python -m reports.build --engine $(ENGINE)

publish: $(NEEDED)
	@$(BIN)/python -m warp_core.world.assets > /dev/null
	@$(BIN)/python -m reports.build --engine $(ENGINE) --publish

fresh: $(NEEDED)
	@$(BIN)/python -m warp_core.world.assets > /dev/null
	@$(BIN)/python -m reports.build --engine $(ENGINE) --fresh

smoke: $(NEEDED)
	@$(BIN)/python -m warp_core.world.assets > /dev/null
	@$(BIN)/python -m reports.build --engine $(ENGINE) --smoke

studies: $(NEEDED)
	@$(BIN)/python -m warp_core.world.assets > /dev/null
	@$(BIN)/python -m warp_core.world.reward_training
	@$(BIN)/python -m reports.build.studies params/study_*.yaml --engine $(ENGINE) $(ARGS)

study: $(NEEDED)
	@$(BIN)/python -m warp_core.world.assets > /dev/null
	@$(BIN)/python -m warp_core.world.reward_training
	@$(BIN)/python -m reports.build.studies params/study_$(NAME).yaml --engine $(ENGINE) $(ARGS)

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

torture: .venv/.dev
	PYTHONPATH=tests $(BIN)/python -m torture

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/$(STRIP) --verify notebooks/*.ipynb

# Behind `make report`, whose reward model it takes; three quarters of an hour on two cores that do nothing else.
bench: $(READY) .venv-trl/.installed .venv-mergekit/.installed
	@mkdir -p runs/bench
	$(BIN)/papermill notebooks/performance.ipynb runs/bench/executed.ipynb -p measure True \
		--log-output --no-progress-bar

.venv-trl/.installed: PEER = torch==2.13.0 trl==1.16.0 transformers==5.23.0
.venv-mergekit/.installed: PEER = torch==2.13.0 mergekit==0.1.5
.venv-%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(PEER)
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v}: make PYTHON=/path/to/python3.11 …")'
	@echo "making .venv with all that the report needs: a few minutes, the first time alone"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

# Extras of pyproject.toml: what tests need beside it, what ENGINE=ray does.
.venv/.dev .venv/.ray: .venv/.%: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	@touch $@

clean:
	rm -rf runs/smoke .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune \
		-exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-trl .venv-mergekit runs
