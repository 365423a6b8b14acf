# The script that the interpreter is given. It is compiled at every start, so the
# client itself is a module. Monitoring agents look for it under this name.
import lambdad_runtime as bootstrap

if __name__ == "__main__":
    bootstrap.main()
