# make demo   install, then pairs from the embedded model and the example tiles, and where the report is
# make test   install, then the fast tests
PYTHON ?= python3.11
BIN := .venv/bin
# What an install depends on; .venv is made anew when one of them changes.
INSTALLED := .venv/.installed

.PHONY: install demo test test-slow test-faults test-fuzz test-clouds test-docs test-gpu test-studio test-notebook test-ray test-tracking test-processors lint types readme reference docs notebooks tutorial bench-events quality benchmark benchmark-ablation benchmark-sztaki clean test-light release

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/changeanywhere generate --source src/changeanywhere/assets/examples --out demo --num-pairs 16 --seed 1
	@echo "open demo/report.html"

# File by file on as many processors as there are, four at most: most tests use one.
test: install
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

# Fifty SIGKILLs over a run of 200 pairs, one before and after every storage call, five in eight jobs that share a set, eleven over
# a scene.
test-faults: install
	$(BIN)/python -m pytest -m faults tests/test_faults.py tests/test_shares.py tests/test_buckets.py tests/test_scenes.py

# Azure, too: its blobs are azurite's, from npm, in a folder that git does not see (make test says that it skips them without).
test-clouds: install
	npm install --no-audit --no-fund --prefix .work azurite@3
	$(BIN)/python -m pytest tests/test_buckets.py tests/test_remote_models.py

# The notebook of docs/ in a kernel that reaches no network.
test-notebook: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,notebook]" nbclient nbformat
	$(BIN)/python -m pytest -m notebook tests/test_notebook.py

# A cluster of several raylets on this machine, of which one is killed and another joins.
test-ray: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,ray]"
	$(BIN)/python -m pytest -m ray tests/test_ray.py

# What works without torch, on another Python: make test-light PYTHON=python3.13
LIGHT := jsonargparse numpy "pillow<13" pyyaml rasterio rich safetensors scikit-image scipy hypothesis jsonschema moto[server] obstore \
  pyarrow pyogrio pystac-core pytest pytest-xdist rio-cogeo shapely webdataset
test-light:
	$(PYTHON) -m venv .venv-light
	.venv-light/bin/python -m pip install --quiet $(LIGHT)
	.venv-light/bin/python -m pip install --quiet --no-deps --editable .
	.venv-light/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile -W ignore

# The numbers of a training in MLflow and W&B, without a network.
test-tracking: install
	$(BIN)/python -m pip install --quiet "mlflow-skinny>=3" "wandb>=0.20"
	$(BIN)/python -m pytest tests/test_tracking.py

# The studio's page in Chromium (of the system, or CHROMIUM=PATH), with axe-core; PICTURES=docs/studio makes the pictures of the
# documentation anew. Six minutes on two cores, most of them the browser's own.
PICTURES ?=
test-studio: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt playwright axe-playwright-python
	STUDIO_PICTURES=$(PICTURES) $(BIN)/python -m pytest -m browser tests/test_studio_page.py

# The same on a GPU as on the CPU (skipped, and said so, where there is none).
test-gpu: install
	$(BIN)/python -m pytest -m gpu

# Hostile files, folders and options, at random from a seed, for ten minutes; fails if anything is found.
MINUTES ?= 10
SEED ?= 0
test-fuzz: install
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES) --seed $(SEED)

# The numerical tests as on other processors, with one thread and two (half an hour on two cores); SHORT=--short: a part of it.
test-processors: install
	$(BIN)/python tests/processors.py $(SHORT)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/mypy

# Runs every transcript of the README and the Python of the pages, as they stand there.
readme: install
	$(BIN)/python -m pytest tests/test_readme.py -m slow

# The tutorial and the notebooks, as they stand there (ten minutes on two cores).
test-docs: install
	$(BIN)/python -m pytest tests/test_site.py -m slow

# The documentation site, in site/: opens from file://, fetches nothing.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

# The tutorial's set: 100 openly licensed pairs, in tutorial/ (docs/tutorial.md).
tutorial: install
	$(BIN)/changeanywhere generate --config tutorial --source examples --out tutorial
	@echo "open tutorial/report.html"

# docs/notebooks, executed anew, with what they say.
notebooks: install
	$(BIN)/python docs/notebooks/execute.py --work runs/notebooks

# docs/cli.md, docs/api.md and docs/layouts.md, from options, docstrings and layouts; a test says when one is out of date.
reference: install
	$(BIN)/python docs/cli_reference.py
	$(BIN)/python docs/api_reference.py
	$(BIN)/python docs/layouts_reference.py

# dist/: wheel, source, notes, bill of materials, licences, checksums; SIGN=KEY signs them. Nothing is uploaded.
release: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[release]"
	$(BIN)/python packaging/release.py $(if $(SIGN),--sign $(SIGN)) $(if $(DRAFT),--draft)

bench-events: install
	$(BIN)/python benchmarks/events.py --masks ../shared/data/landcover/train/masks

# Everything in docs/quality.md, from the judge to the tables, in runs/ (hours on two cores; resumes).
DATA := ../shared/data
RUNS := runs
TILES := --source $(DATA)/landcover/val --licences '[CC0-1.0,CC-BY-4.0]'
JUDGED := --judge runs/judge/segmenter
SET := --seed 1 --batch-size 8 --targets.no-change 0.25
# Buildings and roads are few among default changes; a figure of objects needs 30 of a class, a classifier 200.
OBJECTS := --seed 1 --batch-size 8 --num-pairs 240 --events.shape-bank --targets.class-pairs \
  '{bareland->building: 0.25, vegetation_mixed->building: 0.15, bareland->road: 0.25, vegetation_mixed->road: 0.1}'
quality: install
	$(BIN)/changeanywhere train segmenter --config judge --out runs/judge
	$(BIN)/changeanywhere generate $(TILES) $(SET) --num-pairs 240 --out runs/quality/plain
	$(BIN)/changeanywhere generate $(TILES) $(SET) --num-pairs 240 --filter.model mini-segmenter \
	  --filter.action resample --out runs/quality/filtered
	$(BIN)/changeanywhere generate --config realistic $(TILES) $(SET) --num-pairs 120 --out runs/quality/realistic
	for set in plain filtered realistic; do $(BIN)/changeanywhere evaluate --pairs runs/quality/$$set $(JUDGED) \
	  --real-pairs $(DATA)/naip_bitemporal --out runs/quality/$$set-evaluation || exit; done
	$(BIN)/python benchmarks/change_realism.py --pairs runs/quality/realistic --real-pairs $(DATA)/naip_bitemporal --without water
	$(BIN)/changeanywhere evaluate --model mini $(TILES) $(JUDGED) --num-images 1000 --out runs/quality/mini-evaluation
	$(BIN)/changeanywhere generate $(TILES) $(OBJECTS) --out runs/objects/default
	$(BIN)/changeanywhere generate $(TILES) $(OBJECTS) --exemplar-strength 1 --restore-detail 0 --out runs/objects/pure
	$(BIN)/changeanywhere generate $(TILES) $(OBJECTS) --method copy_paste --out runs/objects/copy_paste
	$(BIN)/changeanywhere evaluate --pairs runs/objects/default --model mini --num-images 0 $(TILES) $(JUDGED) \
	  --also '{pure diffusion: runs/objects/pure, copy-paste: runs/objects/copy_paste}' --out runs/objects/evaluation
	$(BIN)/python benchmarks/shortcut.py --source $(DATA)/landcover/val --licences CC0-1.0 CC-BY-4.0 --num-pairs 96 --out runs/shortcut
	$(BIN)/python benchmarks/ablation.py --source $(DATA)/landcover/val --licences CC0-1.0 CC-BY-4.0 $(JUDGED) \
	  --real-pairs $(DATA)/naip_bitemporal --num-pairs 64 --num-tiles 41 --out runs/ablation

# The table of docs/benchmark.md, with the sets that detectors are pre-trained on, in runs/ (31 to 39 hours of one core; resumes).
TRAIN := --source $(DATA)/landcover/train --licences '[CC0-1.0,CC-BY-4.0]' --num-pairs 4000 --seed 1
PAINTED := --free-fraction 0.1 --reconstruct-t1 --batch-size 8 --num-threads 1
SETS := {exemplars: $(RUNS)/sets/exemplars, pure: $(RUNS)/sets/pure, copy-paste: $(RUNS)/sets/copy_paste}
LEVIR := --pairs $(DATA)/cd_pairs/levir_cd_subset
SMALL := OMP_NUM_THREADS=1 $(BIN)/changeanywhere benchmark --config benchmark-levir-small
benchmark: install
	$(BIN)/changeanywhere generate --config houses $(TRAIN) $(PAINTED) --out $(RUNS)/sets/exemplars
	$(BIN)/changeanywhere generate --config houses $(TRAIN) --method copy_paste --out $(RUNS)/sets/copy_paste
	$(BIN)/changeanywhere generate --config houses $(TRAIN) $(PAINTED) --exemplar-strength 1 --out $(RUNS)/sets/pure
	$(SMALL) $(LEVIR) --pretraining '$(SETS)' --out $(RUNS)/levir-small

# Where a gain comes from, or is lost: one thing changed at a time, one detector; after make benchmark.
LIKE := --targets.no-change 0 --targets.ratios {} --targets.like $(DATA)/cd_pairs/levir_cd_subset --targets.like-list recipes/benchmark-levir-5.txt
ONE := --detectors '[siam_unet_lite0]' --step-seconds '{siam_unet_lite0: 0.15}' --shares '[0,5,10]' --rivals [] --claims-for [] --until-flat [] --seeds-at {}
CHANGED := {exemplars: $(RUNS)/sets/exemplars, ratios: $(RUNS)/sets/like, one-way: $(RUNS)/sets/one_way, classes: $(RUNS)/sets/classes}
COUNTED := {exemplars: [building, informal_settlement], ratios: [building, informal_settlement], one-way: [building, informal_settlement]}
HOUSES := --pretraining '{exemplars: $(RUNS)/sets/exemplars}' --change-classes '{exemplars: [building, informal_settlement]}'
benchmark-ablation: install
	$(BIN)/changeanywhere generate --config houses $(TRAIN) $(PAINTED) $(LIKE) --out $(RUNS)/sets/like
	$(BIN)/changeanywhere generate --config houses $(TRAIN) $(PAINTED) --events.kinds '[appearance]' --out $(RUNS)/sets/one_way
	$(BIN)/changeanywhere generate $(TRAIN) $(PAINTED) --targets.no-change 0.4 --out $(RUNS)/sets/classes
	$(SMALL) $(LEVIR) $(ONE) --pretraining '$(CHANGED)' --change-classes '$(COUNTED)' --out $(RUNS)/ablation/sets
	$(SMALL) $(LEVIR) $(ONE) $(HOUSES) --pretrain.num-steps 2000 --out $(RUNS)/ablation/short
	$(SMALL) $(LEVIR) $(ONE) $(HOUSES) --pretrain.learning-rate 2e-4 --out $(RUNS)/ablation/rate

# Another target (aerial, 1.5 m; 12 test pairs): one detector, three arms.
benchmark-sztaki: install
	$(SMALL) --pairs $(DATA)/cd_pairs/sztaki_airchange $(ONE) --name 'SZTAKI AirChange' --baselines '[only-sup]' \
	  --pretraining '{exemplars: $(RUNS)/sets/exemplars, copy-paste: $(RUNS)/sets/copy_paste}' \
	  --change-classes '{exemplars: [building, informal_settlement], copy-paste: [building, informal_settlement]}' --out $(RUNS)/sztaki-small

clean:
	rm -rf .venv demo tutorial build dist site
