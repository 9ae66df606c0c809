"""`python -m durable_streamsd`."""

from durable_streamsd.cli import main

if __name__ == "__main__":
    main(prog_name="durable-streamsd")
