#!/bin/sh
# Starts the runtime client in this process, or hands its command line to the
# program that AWS_LAMBDA_EXEC_WRAPPER names. A wrapper that is missing ends with
# 127 and one that cannot be executed with 126, as a shell does.
here=${0%/*}

# The file beside this one names the interpreter: where it is in a sandbox, and
# where it is on the host for processes that see the host's files.
{
	read -r program
	read -r host
} <"$here/interpreter"
if [ "$here" != /var/runtime ]; then
	program=$host
else
	unset _LAMBDAD_OPT # where layers are; here they are in their place
	if [ -d /var/lang/lib ]; then
		# A shared library of the interpreter is found whatever the customer's
		# variable says.
		case ":$LD_LIBRARY_PATH:" in
		*:/var/lang/lib:*) ;;
		*) export LD_LIBRARY_PATH="/var/lang/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ;;
		esac
	fi
fi

