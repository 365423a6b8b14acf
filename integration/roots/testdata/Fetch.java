import java.net.InetAddress;
import java.net.URI;

/** Prints the address of the machine it runs on and what is behind a URL. */
public class Fetch {
    public static void main(String[] args) throws Exception {
        System.out.print(InetAddress.getByName("sandbox.localdomain").getHostAddress() + " "
                + new String(URI.create(args[0]).toURL().openStream().readAllBytes()));
    }
}
