import com.amazonaws.services.lambda.runtime.Context;
import com.amazonaws.services.lambda.runtime.RequestHandler;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

/** Reports what a Java function sees. */
public class Probe implements RequestHandler<Object, Map<String, Object>> {
    private static String read(String path) {
        try {
            return new String(Files.readAllBytes(Path.of(path)), StandardCharsets.UTF_8);
        } catch (IOException e) {
            return e.toString();
        }
    }

    private static boolean writable(String dir) {
        try {
            Files.writeString(Path.of(dir, "probe-file"), "");
            return true;
        } catch (IOException e) {
            return false;
        }
    }

    @Override
    public Map<String, Object> handleRequest(Object event, Context context) {
        System.out.println("probe: a line");
        context.getLogger().log("probe: two\nlines\n");
        Map<String, Object> out = new LinkedHashMap<>();
        out.put("env", System.getenv());
        out.put("args", Arrays.asList(read("/proc/self/cmdline").split("\0")));
        out.put("cwd", System.getProperty("user.dir"));
        out.put("status", read("/proc/self/status"));
        out.put("limits", read("/proc/self/limits"));
        out.put("meminfo", read("/proc/meminfo"));
        Map<String, Boolean> writable = new LinkedHashMap<>();
        for (String d : new String[] {"/var/task", "/opt", "/var/runtime", "/tmp"}) {
            writable.put(d, writable(d));
        }
        out.put("writable", writable);
        out.put("event", event);
        out.put("remainingMs", context.getRemainingTimeInMillis());
        Map<String, Object> c = new LinkedHashMap<>();
        c.put("name", context.getFunctionName());
        c.put("version", context.getFunctionVersion());
        c.put("arn", context.getInvokedFunctionArn());
        c.put("memory", String.valueOf(context.getMemoryLimitInMB()));
        c.put("requestId", context.getAwsRequestId());
        c.put("group", context.getLogGroupName());
        c.put("stream", context.getLogStreamName());
        c.put("custom", context.getClientContext() == null ? null : context.getClientContext().getCustom());
        out.put("context", c);
        return out;
    }
}
