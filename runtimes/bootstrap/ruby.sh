SHLVL=0
export PWD SHLVL
set -- "$program" "$here/lambdad_runtime.rb"

