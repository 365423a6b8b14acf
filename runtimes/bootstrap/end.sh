if [ -n "$AWS_LAMBDA_EXEC_WRAPPER" ]; then
	case $AWS_LAMBDA_EXEC_WRAPPER in
	*/*)
		if [ ! -e "$AWS_LAMBDA_EXEC_WRAPPER" ]; then
			echo "$0: AWS_LAMBDA_EXEC_WRAPPER names $AWS_LAMBDA_EXEC_WRAPPER, which does not exist" >&2
			exit 127
		fi
		if [ ! -x "$AWS_LAMBDA_EXEC_WRAPPER" ] || [ -d "$AWS_LAMBDA_EXEC_WRAPPER" ]; then
			echo "$0: AWS_LAMBDA_EXEC_WRAPPER names $AWS_LAMBDA_EXEC_WRAPPER, which is not executable" >&2
			exit 126
		fi
		;;
	esac
	exec "$AWS_LAMBDA_EXEC_WRAPPER" "$@"
fi
exec "$@"
