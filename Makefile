# Everything runs in .venv, which `make install` fills from requirements.txt, for using the scripts,
# and the tests from requirements-dev.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Weights for the demo instead of the default: make demo MODEL=path
MODEL :=
WEIGHTS := $(if $(MODEL),--unet_pretrain_dir "$(MODEL)")

.PHONY: install install-dev demo test test-long test-faults test-mutations lint clean

install: $(VENV)/installed

install-dev: $(VENV)/installed-dev

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# A photograph of yours that fails is named and decides the exit status, after all else is done.
demo: install
	$(BIN)/python -m data.demo demo/output
	$(BIN)/python inference.py --input demo/output/backlit --output demo/output/enhanced $(WEIGHTS)
	$(BIN)/python compute_metrics.py --gt_images_path demo/output/gt \
		--enhanced_images_path demo/output/enhanced --input_images_path demo/output/backlit \
		--metrics psnr ssim --report demo/output/report.html
	$(BIN)/python inference.py --input demo/output/backlit --output demo/output/strength_0.5 \
		--strength 0.5 $(WEIGHTS)
	$(BIN)/python inference.py --input demo/output/backlit --output demo/output/strength_1.5 \
		--strength 1.5 $(WEIGHTS)
	$(BIN)/python -m benchmarks.pictures demo/output/strengths.jpg --rows backlit=backlit \
		"strength_0.5=strength 0.5" "enhanced=strength 1" "strength_1.5=strength 1.5"
	@status=0; echo; \
	if [ -n "$$(ls demo/input)" ]; then \
		$(BIN)/python inference.py --recursive --input demo/input --output demo/output/yours \
			$(WEIGHTS) || status=$$?; \
		echo "Your photographs:       demo/output/yours"; \
	else \
		echo "Put photographs of yours into demo/input and run make demo again."; \
	fi; \
	echo "Enhanced photographs:   demo/output/enhanced"; \
	echo "At three strengths:     demo/output/strengths.jpg"; \
	echo "Before, after, scores:  open demo/output/report.html in a browser"; \
	exit $$status

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A process more than cores, with one thread each: the tests' tensors are too small for more.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# What takes longer: the published schedule as it stands, from six seeds, among others.
test-long: install-dev
	$(BIN)/python -m pytest -m long

# Kills, full disks, damaged files and odd command lines by the hundred, counted by kind.
test-faults: install-dev
	FAULTS=whole OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults --numprocesses auto

# Breaks the method in one place after another; each time a test must fail. Takes some minutes.
test-mutations: install-dev
	$(BIN)/python -m tests.mutations

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
