: "${PYTHONPATH:=$here}"
SHLVL=0
export PYTHONPATH PWD SHLVL
set -- "$program" "$here/bootstrap.py"

