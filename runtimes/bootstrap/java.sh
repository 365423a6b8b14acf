unset PWD OLDPWD
{
	read -r _
	read -r _
	read -r flags
} <"$here/interpreter"
# 85 %, 10 % and 5 % of the memory, in KiB.
memory=$((${AWS_LAMBDA_FUNCTION_MEMORY_SIZE:-128} * 1024))
set -- "$program" \
	-XX:MaxHeapSize=$(((memory * 85 + 99) / 100))k \
	-XX:MaxMetaspaceSize=$((memory / 10))k \
	-XX:ReservedCodeCacheSize=$((memory / 20))k \
	-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.net.preferIPv4Stack=true $flags \
	-classpath "$here/lib/*" \
	com.amazonaws.services.lambda.runtime.api.client.AWSLambda "$_HANDLER"

