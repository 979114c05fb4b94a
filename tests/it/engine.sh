#!/bin/sh
# Stands in for heirloom-engine in tests: shows the job that it is handed.
printf '%s\n' "$@"
