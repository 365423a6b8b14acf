import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** An internal extension: a Java agent lives in the runtime's process and began before it. */
public class Agent {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();
    private static final String BASE = "http://" + System.getenv("AWS_LAMBDA_RUNTIME_API") + "/2020-01-01/extension/";

    public static void premain(String args) throws Exception {
        String name = System.getenv().getOrDefault("HOOK_NAME", "hook");
        HttpRequest register = HttpRequest.newBuilder(URI.create(BASE + "register")).version(HttpClient.Version.HTTP_1_1)
            .header("Lambda-Extension-Name", name).POST(HttpRequest.BodyPublishers.ofString("{\"events\":[\"INVOKE\"]}")).build();
        String id = CLIENT.send(register, HttpResponse.BodyHandlers.ofString()).headers().firstValue("Lambda-Extension-Identifier").orElseThrow();
        Thread loop = new Thread(() -> {
            HttpRequest next = HttpRequest.newBuilder(URI.create(BASE + "event/next")).version(HttpClient.Version.HTTP_1_1)
                .header("Lambda-Extension-Identifier", id).build();
            try {
                for (;;) {
                    String event = CLIENT.send(next, HttpResponse.BodyHandlers.ofString()).body();
                    System.out.println("hook: " + event.replaceAll("(?s).*\"eventType\"\\s*:\\s*\"(\\w+)\".*", "$1"));
                }
            } catch (Exception e) {
                System.out.println("hook: " + e);
            }
        });
        loop.setDaemon(true);
        loop.start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook: SIGTERM")));
    }
}
