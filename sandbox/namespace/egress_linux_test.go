//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

// hostVariable says that this process is in a network namespace of its own, which
// stands for a host; its value is the directory of the probe.
const hostVariable = "LAMBDAD_TEST_EGRESS_HOST"

// TestEgress runs the tests of outbound network as a process whose host has no
// network but the one they make.
func TestEgress(t *testing.T) {
	sandboxtest.RequireRoot(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestHost", "-test.v", "-test.timeout=3m")
	cmd.Env = append(os.Environ(), hostVariable+"="+sandboxtest.BuildProbe(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestHostEgress")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// Addresses of the world outside the host.
const (
	hostAddress   = "192.168.77.2"
	routerAddress = "192.168.77.1"
	publicAddress = "93.184.216.34"
	ownAddress    = "10.20.30.40"
)

func metadata() []string { return []string{"169.254.169.254", "168.63.129.16", "100.100.100.200"} }

// world makes the host's uplink and what is behind it.
type world struct {
	t     *traveller
	outer int // network namespace of the outside
}

// ownHost says that this process is one that TestEgress started in a network of its
// own. The TestHost tests are what it runs there; elsewhere they are nothing.
func ownHost() bool { return os.Getenv(hostVariable) != "" }

func newWorld(t *testing.T) *world {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tr, err := newTraveller(false)
	must(err)
	t.Cleanup(tr.close)
	must(loopbackUp())
	w := &world{t: tr}
	w.outer, err = tr.newNetwork()
	must(err)
	t.Cleanup(func() { unix.Close(w.outer) })
	in, err := tr.netlinkIn(w.outer)
	must(err)
	defer in.Close()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(err)
	t.Cleanup(host.Close)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wan0"
	wan := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(w.outer)}
	must(host.LinkAdd(wan))
	t.Cleanup(func() { must(host.LinkDel(wan)) })
	parse := func(s string) *netlink.Addr {
		a, err := netlink.ParseAddr(s)
		must(err)
		return a
	}
	must(host.AddrAdd(wan, parse(hostAddress+"/24")))
	must(host.LinkSetUp(wan))
	must(host.RouteAdd(&netlink.Route{LinkIndex: wan.Index, Gw: net.ParseIP(routerAddress)}))
	eth0, err := in.LinkByName("eth0")
	must(err)
	for _, a := range append(metadata(), publicAddress, ownAddress) {
		must(in.AddrAdd(eth0, parse(a+"/32")))
	}
	must(in.AddrAdd(eth0, parse(routerAddress+"/24")))
	must(in.LinkSetUp(eth0))

	l, err := tr.listen(w.outer, "0.0.0.0:80")
	must(err)
	t.Cleanup(func() { l.Close() })
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprint(rw, "hello "+host)
		}))
	}()
	u, err := tr.listenPacket(w.outer, "0.0.0.0:53")
	must(err)
	t.Cleanup(func() { u.Close() })
	go answerNames(u)
	return w
}

// answerNames answers every question with publicAddress.
func answerNames(c net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		var m dnsmessage.Message
		if err != nil || m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.Additionals = true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body: &dnsmessage.AResource{A: netip.MustParseAddr(publicAddress).As4()}}}
		}
		if b, err := m.Pack(); err == nil {
			_, _ = c.WriteTo(b, from)
		}
	}
}

// open makes a driver, swept, and what closes it; the end of the test does, too.
func (w *world) open(t *testing.T, cfg Config) (*Driver, func()) {
	t.Helper()
	cfg.ID = "egress"
	if cfg.names == nil {
		cfg.names = &resolving{direct: []netip.Addr{netip.MustParseAddr(routerAddress)}}
	}
	d, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	if err := d.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	return d, end
}

func kept(t *testing.T, d *Driver) sandbox.Promise {
	t.Helper()
	i := slices.IndexFunc(d.Promises(), func(p sandbox.Promise) bool { return p.Name == "outbound network" })
	if i < 0 {
		t.Fatal("no promise about outbound network")
	}
	return d.Promises()[i]
}

func box1(t *testing.T, d *Driver, name string, egress sandbox.Egress) sandbox.Sandbox {
	t.Helper()
	b, err := d.Create(context.Background(), sandbox.Spec{ID: name, TmpBytes: 16 << 20, Egress: egress,
		Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{os.Getenv(hostVariable)}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// get makes an HTTP request from inside.
func get(t *testing.T, b sandbox.Sandbox, host string) (string, bool) {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	began := time.Now()
	p, err := b.Start(ctx, sandbox.Command{Party: "runtime", Path: "/var/task/probe", Args: []string{"probe", "get", "http://" + host + "/"}, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Drained():
		<-p.Done()
	case <-ctx.Done():
		t.Errorf("%s: neither answered nor refused within 20 s", host)
		return "", false
	}
	if p.Exit() == (sandbox.Exit{}) {
		return out.String(), true
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("%s: refused after %v, want at once: %s", host, d, &errs)
	}
	return errs.String(), false
}

func reached(t *testing.T, b sandbox.Sandbox, host string) {
	t.Helper()
	if out, ok := get(t, b, host); !ok || out != "hello "+hostAddress {
		t.Errorf("%s: %q, want to be greeted as the host", host, out)
	}
}

func refused(t *testing.T, b sandbox.Sandbox, host string) {
	t.Helper()
	if out, ok := get(t, b, host); ok || !strings.Contains(out, "refused") && !strings.Contains(out, "unreachable") {
		t.Errorf("%s: %q, want a refusal", host, out)
	}
}

// state is what a driver may change on the host.
func state(t *testing.T) string {
	t.Helper()
	var s []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		s = append(s, "link "+l.Attrs().Name)
	}
	for _, name := range []string{"all", "default", "wan0"} {
		on, err := forwarding(name)
		if err != nil {
			t.Fatal(err)
		}
		s = append(s, fmt.Sprint("forwarding ", name, " ", on))
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	chains, err := c.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			t.Fatal(err)
		}
		s = append(s, fmt.Sprint("chain ", ch.Table.Name, " ", ch.Name, " ", len(rules)))
	}
	routes, err := netlink.RouteList(nil, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		s = append(s, "route "+r.String())
	}
	slices.Sort(s)
	return strings.Join(s, "\n")
}

// foreign makes a table of somebody else's, with a policy for what is forwarded.
func foreign(t *testing.T, policy nftables.ChainPolicy) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tb := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "theirs"})
	ch := c.AddChain(&nftables.Chain{Name: "FORWARD", Table: tb, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &policy})
	c.AddRule(&nftables.Rule{Table: tb, Chain: ch, Exprs: []expr.Any{&expr.Counter{}}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.DelTable(tb)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	})
}

func TestHostEgress(t *testing.T) {
	if !ownHost() {
		return
	}
	w := newWorld(t)
	foreign(t, nftables.ChainPolicyAccept)
	// What the host serves, on every address and on its loopback.
	services, err := net.Listen("tcp4", "0.0.0.0:80")
	if err != nil {
		t.Fatal(err)
	}
	defer services.Close()
	go func() {
		_ = http.Serve(services, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "the host") }))
	}()
	before := state(t)
	d, end := w.open(t, Config{Egress: sandbox.EgressAll})
	if p := kept(t, d); !p.Kept {
		t.Fatalf("not kept: %s (%s)", p.Why, p.Cure)
	}
	a, b := box1(t, d, "a", ""), box1(t, d, "b", "")
	l, err := b.Listen("0.0.0.0:80")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = http.Serve(l, http.NotFoundHandler()) }()
	defer l.Close()

	never := append(metadata(), hostAddress, d.egress.gateway.String(), b.(freezable).shell.plug.addr.String(), "127.0.0.53", "127.0.0.1", "[::1]", "255.255.255.255", "192.168.77.255")
	t.Run("all", func(t *testing.T) {
		reached(t, a, publicAddress)
		reached(t, a, ownAddress)
		reached(t, a, "some.name.test")
		for _, host := range never {
			refused(t, a, host)
		}
	})
	t.Run("internet", func(t *testing.T) {
		c := box1(t, d, "c", sandbox.EgressInternet)
		reached(t, c, publicAddress)
		reached(t, c, "some.name.test") // though the server is private
		for _, host := range append(never, ownAddress, routerAddress) {
			refused(t, c, host)
		}
	})
	t.Run("off", func(t *testing.T) {
		c := box1(t, d, "d", sandbox.EgressOff)
		for _, host := range append(never, ownAddress, publicAddress) {
			refused(t, c, host)
		}
		inner, err := c.Listen("127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_ = http.Serve(inner, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "endpoint") }))
		}()
		defer inner.Close()
		if out, _ := get(t, c, "127.0.0.1"); out != "endpoint" {
			t.Errorf("its own loopback: %q", out)
		}
	})
	t.Run("frozen", func(t *testing.T) {
		f := a.(sandbox.Freezer)
		addr := a.(freezable).shell.plug.addr
		if err := errors.Join(f.Freeze(t.Context()), f.Thaw(t.Context())); err != nil {
			t.Fatal(err)
		}
		if got := a.(freezable).shell.plug.addr; got != addr {
			t.Errorf("address %s, was %s", got, addr)
		}
		reached(t, a, publicAddress)
	})
	t.Run("other sources", func(t *testing.T) {
		u, err := w.t.listenPacket(w.outer, publicAddress+":9")
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		own := a.(freezable).shell.plug.addr.String()
		var out bytes.Buffer
		// Its own at last: what was sent before has come by then.
		p, err := a.Start(t.Context(), sandbox.Command{Party: "runtime", Path: "/var/task/probe", Stdout: &out, Stderr: &out,
			Args: []string{"probe", "spoof", publicAddress + ":9", b.(freezable).shell.plug.addr.String(), hostAddress, routerAddress, d.egress.gateway.String(), "10.1.2.3", "8.8.8.8", own}})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		<-p.Drained()
		_ = u.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 100)
		n, from, err := u.ReadFrom(buf)
		if err != nil || string(buf[:n]) != own || !strings.HasPrefix(from.String(), hostAddress+":") {
			t.Errorf("from %v came what was sent from %q, %v; want %s as the host, and nothing before; inside: %s", from, buf[:n], err, own, &out)
		}
	})
	t.Run("IPv6", func(t *testing.T) {
		c := box1(t, d, "v6", "")
		plug := c.(freezable).shell.plug
		if list, err := netlink.AddrList(plug.link, unix.AF_INET6); err != nil || len(list) > 0 {
			t.Errorf("addresses of the link: %v, %v", list, err)
		}
		// Were it switched on all the same, the host would refuse what comes.
		host, err := netlink.ParseAddr("fd00:77::1/64")
		if err == nil {
			host.Flags = unix.IFA_F_NODAD
			err = netlink.AddrAdd(plug.link, host)
		}
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp6", "[fd00:77::1]:80")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() { _ = http.Serve(l, http.NotFoundHandler()) }()
		if out, ok := get(t, c, "[fd00:77::1]"); ok {
			t.Errorf("switched off inside, it reached %q", out)
		}
		err = w.t.do(func() error {
			if err := unix.Setns(c.(freezable).shell.netns, unix.CLONE_NEWNET); err != nil {
				return err
			}
			return writeFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0")
		})
		if err != nil {
			t.Fatal(err)
		}
		in, eth0 := eth0In(t, w.t, c.(freezable).shell.netns)
		inside, err := netlink.ParseAddr("fd00:77::2/64")
		if err == nil {
			inside.Flags = unix.IFA_F_NODAD
			err = in.AddrAdd(eth0, inside)
		}
		// Neither finds the other by itself: what they ask is refused, too.
		know := func(h *netlink.Handle, link int, ip string, at netlink.Link) error {
			return h.NeighAdd(&netlink.Neigh{LinkIndex: link, State: netlink.NUD_PERMANENT, IP: net.ParseIP(ip), HardwareAddr: at.Attrs().HardwareAddr})
		}
		var outer netlink.Link
		if err == nil {
			outer, err = d.egress.host.LinkByName(plug.link.Attrs().Name)
		}
		if err == nil {
			err = errors.Join(know(in, eth0.Attrs().Index, "fd00:77::1", outer), know(d.egress.host, outer.Attrs().Index, "fd00:77::2", eth0))
		}
		if err != nil {
			t.Fatal(err)
		}
		refused(t, c, "[fd00:77::1]")
	})
	t.Run("connections without end", func(t *testing.T) {
		i := slices.IndexFunc(d.Promises(), func(p sandbox.Promise) bool { return strings.HasSuffix(p.Name, "table of connections") })
		if i < 0 || !d.Promises()[i].Kept {
			t.Fatalf("promises: %+v", d.Promises())
		}
		g := box1(t, d, "g", "")
		bounds := trackingOf(trackingSize())
		// Nobody answers, so that the kernel remembers each for half a minute.
		var errs bytes.Buffer
		p, err := g.Start(t.Context(), sandbox.Command{Party: "runtime", Path: "/var/task/probe",
			Args: []string{"probe", "datagrams", publicAddress, strconv.Itoa(int(bounds.held) * 2), "2"}, Stderr: &errs})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if p.Exit() != (sandbox.Exit{}) {
			t.Fatalf("%v: %s", p.Exit(), &errs)
		}
		from := g.(freezable).shell.plug.addr
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, f := range list {
			if a, _ := netip.AddrFromSlice(f.Forward.SrcIP); a.Unmap() == from {
				n++
			}
		}
		if n < int(bounds.held)/2 || n > int(bounds.held)+16 {
			t.Errorf("the kernel tracks %d connections of a sandbox that began %d; want at most %d", n, bounds.held*4, bounds.held)
		}
		refused(t, g, publicAddress)
		reached(t, a, publicAddress)
	})
	t.Run("flushed", func(t *testing.T) {
		// Links come and go with sandboxes, of which earlier cases had some.
		rules := func() string {
			return strings.Join(slices.DeleteFunc(strings.Split(state(t), "\n"), func(line string) bool {
				return strings.HasPrefix(line, "link ") || strings.HasPrefix(line, "route ")
			}), "\n")
		}
		during := rules()
		c, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: d.egress.wall.table})
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := locked(func() error { return d.egress.refresh(c) }); err != nil {
			t.Fatal(err)
		}
		if now := rules(); now != during {
			t.Errorf("before:\n%s\nafter:\n%s", during, now)
		}
		refused(t, a, hostAddress)
		reached(t, a, publicAddress)
	})
	t.Run("nobody comes in", func(t *testing.T) {
		// A neighbour of the host that knows the address and sends by way of the host.
		in, eth0 := eth0In(t, w.t, w.outer)
		to := b.(freezable).shell.plug.addr
		r := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: addr(to).IPNet, Gw: net.ParseIP(hostAddress)}
		if err := in.RouteAdd(r); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = in.RouteDel(r) }()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if c, err := w.t.dial(ctx, w.outer, netip.AddrPortFrom(to, 80).String()); err == nil {
			c.Close()
			t.Error("reached from outside")
		}
	})
	if on, _ := forwarding("all"); on {
		t.Error("the machine-wide switch is on")
	}
	if on, _ := forwarding("wan0"); !on {
		t.Error("the uplink does not forward")
	}
	for _, s := range []sandbox.Sandbox{a, b} {
		if err := s.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	}
	end()
	if after := state(t); after != before {
		t.Errorf("before:\n%s\nafter Close:\n%s", before, after)
	}
}

// TestHostRelay: the host asks a stub on its own loopback.
func TestHostRelay(t *testing.T) {
	if !ownHost() {
		return
	}
	w := newWorld(t)
	u, err := net.ListenPacket("udp4", "127.0.0.53:53")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go answerNames(u)
	names := findResolvers("nameserver 127.0.0.53\n", "", func(netip.Addr) bool { return false })
	d, _ := w.open(t, Config{Egress: sandbox.EgressInternet, names: &names})
	a := box1(t, d, "a", sandbox.EgressAll) // is no more than the driver allows
	reached(t, a, "some.name.test")
	refused(t, a, ownAddress)
	off := box1(t, d, "b", sandbox.EgressOff)
	if out, ok := get(t, off, "some.name.test"); ok {
		t.Errorf("without a way out: %s", out)
	}
}

// TestHostBlocked: somebody else's firewall drops what is forwarded.
func TestHostBlocked(t *testing.T) {
	if !ownHost() {
		return
	}
	w := newWorld(t)
	foreign(t, nftables.ChainPolicyDrop)
	before := state(t)
	d, _ := w.open(t, Config{Egress: sandbox.EgressAll})
	p := kept(t, d)
	if p.Kept || !strings.Contains(p.Why, "chain FORWARD of table theirs") || !strings.Contains(p.Cure, LinksOf("egress")) {
		t.Errorf("%+v", p)
	}
	if after := state(t); after != before {
		t.Errorf("before:\n%s\nafter New:\n%s", before, after)
	}
	refused(t, box1(t, d, "a", sandbox.EgressAll), publicAddress)
}

// TestHostKilled: what a killed daemon leaves is undone, by a driver with a way
// out and by one without.
func TestHostKilled(t *testing.T) {
	if !ownHost() {
		return
	}
	for _, mode := range []sandbox.Egress{sandbox.EgressAll, sandbox.EgressOff} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t)
			foreign(t, nftables.ChainPolicyAccept)
			before := state(t)
			sandboxtest.KillDaemon(t, time.Second, "DAEMON_ID=egress", "DAEMON_EGRESS=all")
			if left := state(t); !strings.Contains(left, tablePrefix+"egress") || !strings.Contains(left, "forwarding wan0 true") {
				t.Errorf("nothing to sweep:\n%s", left)
			}
			d, end := w.open(t, Config{Egress: mode})
			if mode == sandbox.EgressOff {
				if after := state(t); after != before {
					t.Errorf("before:\n%s\nafter Sweep:\n%s", before, after)
				}
				return
			}
			a := box1(t, d, "a", "")
			reached(t, a, publicAddress)
			if err := a.Destroy(context.Background()); err != nil {
				t.Error(err)
			}
			end()
			if after := state(t); after != before {
				t.Errorf("before:\n%s\nafter Sweep and Close:\n%s", before, after)
			}
		})
	}
}

func TestFindResolvers(t *testing.T) {
	local := func(a netip.Addr) bool { return a.String() == "10.0.0.9" }
	for _, c := range []struct{ name, conf, upstream, want string }{
		{"own", "# comment\nnameserver 10.0.0.2\nnameserver 1.1.1.1\nsearch corp\noptions edns0 trust-ad\nnameserver\n", "", "nameserver 10.0.0.2\nnameserver 1.1.1.1\noptions edns0 trust-ad\n"},
		{"stub", "nameserver 127.0.0.53\n", "nameserver 10.0.0.2\n", "nameserver 10.0.0.2\n"},
		{"stub of another", "nameserver 127.0.0.1\n", "nameserver 10.0.0.2\n", "nameserver 127.0.0.1\n"},
		{"the cloud's", "nameserver 169.254.169.253\n", "", "nameserver 127.0.0.1\n"},
		{"IPv6 alone", "nameserver fd00::1\n", "", "nameserver 127.0.0.1\n"},
		{"the host's own address", "nameserver 10.0.0.9\n", "", "nameserver 127.0.0.1\n"},
		{"none", "", "", ""},
	} {
		if got := findResolvers(c.conf, c.upstream, local).conf(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestOwnBlock(t *testing.T) {
	f := firewall{block: netip.MustParsePrefix("198.18.0.0/19"), probe: netip.MustParseAddr("198.18.31.255")}
	n := 0
	for _, p := range f.own() {
		n += 1 << (32 - p.Bits())
	}
	if n != 1<<13-1 || covered(f.own(), f.probe) || !covered(f.own(), netip.MustParseAddr("198.18.31.254")) || !covered(f.own(), f.block.Addr()) {
		t.Errorf("%d addresses in %v", n, f.own())
	}
	got := intervals(prefixes("10.0.0.0/8", "224.0.0.0/3"))
	want := []nftables.SetElement{{Key: []byte{10, 0, 0, 0}}, {Key: []byte{11, 0, 0, 0}, IntervalEnd: true}, {Key: []byte{224, 0, 0, 0}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

// TestAddresses: an address comes round again only after all others.
func TestAddresses(t *testing.T) {
	a, b := netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("198.18.0.3")
	e := &egress{clean: []netip.Addr{a, b}}
	first, err := e.take()
	if err != nil || first != a {
		t.Fatal(first, err)
	}
	e.give(first)
	if second, err := e.take(); err != nil || second != b {
		t.Error(second, err)
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct{ e, limit, want sandbox.Egress }{
		{"", "off", "off"}, {"", "all", "all"}, {"all", "internet", "internet"}, {"internet", "all", "internet"},
		{"internet", "off", "off"}, {"off", "all", "off"}, {"nonsense", "all", "off"},
	} {
		if got := c.e.Within(c.limit); got != c.want {
			t.Errorf("%q within %q: %q, want %q", c.e, c.limit, got, c.want)
		}
	}
}

// TestLink: the host's end of a link forwards IPv4 and has no IPv6 address.
func TestLink(t *testing.T) {
	d := open(t, Config{Pool: -1, Egress: sandbox.EgressAll})
	if d.egress == nil {
		t.Skip("this host forwards nothing for sandboxes")
	}
	s, err := d.newShell(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.destroy(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	name := s.plug.link.Attrs().Name
	if on, err := forwarding(name); !on || err != nil {
		t.Errorf("link %s does not forward (%v)", name, err)
	}
	l, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := l.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	if len(addrs) != 1 || addrs[0].String() != d.egress.gateway.String()+"/32" || l.Flags&net.FlagUp == 0 {
		t.Errorf("link %s has the addresses %v, flags %v", name, addrs, l.Flags)
	}
}

// eth0In is the eth0 of a network namespace, and what changes it there.
func eth0In(t *testing.T, from *traveller, netns int) (*netlink.Handle, netlink.Link) {
	t.Helper()
	in, err := from.netlinkIn(netns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.Close)
	eth0, err := in.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return in, eth0
}
