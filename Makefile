# Forwards to dev.py, which also runs where there is no make.
PYTHON ?= $(shell command -v python3 || command -v python)

.PHONY: demo test check env bench
demo test check env bench:
	@$(PYTHON) dev.py $@ $(ARGS)
