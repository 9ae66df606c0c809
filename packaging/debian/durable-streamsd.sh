#!/bin/sh
exec /usr/bin/python3 -I /usr/lib/durable-streamsd/durable-streamsd.pyz "$@"
