SHLVL=0
export PWD SHLVL
set -- "$here/index.mjs"
# Two features that AWS's runtimes leave off unless the customer asks for them.
{
	read -r _
	read -r _
	read -r flags
} <"$here/interpreter"
for flag in $flags; do
	case " $NODE_OPTIONS " in
	*" --$flag "*) ;;
	*) set -- "--no-$flag" "$@" ;;
	esac
done
# 5 % and 90 % of the memory, in MB, unless the customer sizes the heap.
case $NODE_OPTIONS in
*max[-_]semi[-_]space[-_]size* | *max[-_]old[-_]space[-_]size*) ;;
*)
	memory=${AWS_LAMBDA_FUNCTION_MEMORY_SIZE:-128}
	set -- "--max-semi-space-size=$((memory / 20))" "--max-old-space-size=$((memory * 9 / 10))" "$@"
	;;
esac
set -- "$program" "$@"

