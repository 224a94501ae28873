"""`python -m glm_portable`: the command line, where the command itself is not on the path."""

from glm_portable.cli import main

if __name__ == "__main__":
    main(prog_name="glm-portable")
