//go:build amd64 || arm64

package namespace

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Names. Sandboxes ask the host's own name servers where they can be reached.
// Where the host asks itself (a stub on a loopback address whose upstreams nobody
// tells) or an address that sandboxes must not reach, as several clouds' servers
// are, the daemon passes queries on from 127.0.0.1:53 inside.

// Limits of what one sandbox may have under way through the daemon.
const (
	dnsQueries     = 64
	dnsConnections = 16
	dnsTimeout     = 5 * time.Second
)

// A resolving is how sandboxes find names.
type resolving struct {
	direct  []netip.Addr // servers they ask themselves
	relayed []netip.Addr // servers the daemon asks for them; then direct is empty
	options string       // line of resolv.conf, or ""
}

// findResolvers decides from the host's resolv.conf and, where that names a stub,
// from the list of upstreams systemd-resolved keeps. local says whether an
// address is the host's.
func findResolvers(conf, upstream string, local func(netip.Addr) bool) resolving {
	var r resolving
	hosts, options := nameServers(conf)
	r.options = options
	reachable := func(list []netip.Addr) []netip.Addr {
		var out []netip.Addr
		for _, a := range list {
			if a.Is4() && !covered(neverReached(), a) && !local(a) {
				out = append(out, a)
			}
		}
		return out
	}
	if r.direct = reachable(hosts); len(r.direct) == 0 {
		// The stub of systemd-resolved, and nobody else's, has its upstreams there.
		if len(hosts) > 0 && (hosts[0] == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || hosts[0] == netip.AddrFrom4([4]byte{127, 0, 0, 54})) {
			list, _ := nameServers(upstream)
			r.direct = reachable(list)
		}
	}
	if len(r.direct) == 0 {
		r.relayed = hosts
	}
	return r
}

// nameServers reads a resolv.conf.
func nameServers(conf string) (servers []netip.Addr, options string) {
	for line := range strings.Lines(conf) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				servers = append(servers, a.Unmap())
			}
		case "options":
			options = strings.Join(f, " ") + "\n"
		}
	}
	return servers, options
}

// conf is the resolv.conf of sandboxes.
func (r resolving) conf() string {
	var b strings.Builder
	for _, a := range r.direct {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	if len(r.direct) == 0 && len(r.relayed) > 0 {
		b.WriteString("nameserver 127.0.0.1\n")
	}
	b.WriteString(r.options)
	return b.String()
}

// hostResolvers is findResolvers on this host.
func hostResolvers() resolving {
	conf, _ := os.ReadFile("/etc/resolv.conf")
	upstream, _ := os.ReadFile("/run/systemd/resolve/resolv.conf")
	addrs, _ := net.InterfaceAddrs()
	return findResolvers(string(conf), string(upstream), func(a netip.Addr) bool {
		for _, n := range addrs {
			if n, ok := n.(*net.IPNet); ok {
				if own, ok := netip.AddrFromSlice(n.IP); ok && own.Unmap() == a {
					return true
				}
			}
		}
		return false
	})
}

// A relay passes the queries of one sandbox on.
type relay struct {
	servers []string
	udp     net.PacketConn
	tcp     net.Listener
	ctx     context.Context // ends with close: for connections being made
	cancel  context.CancelFunc
	work    sync.WaitGroup

	mu     sync.Mutex
	closed bool
	open   map[io.Closer]bool
}

// newRelay listens inside a network namespace.
func newRelay(t *traveller, netns int, servers []netip.Addr) (*relay, error) {
	r := &relay{open: map[io.Closer]bool{}}
	for _, a := range servers {
		r.servers = append(r.servers, netip.AddrPortFrom(a, 53).String())
	}
	const addr = "127.0.0.1:53"
	var err error
	if r.tcp, err = t.listen(netns, addr); err != nil {
		return nil, err
	}
	if r.udp, err = t.listenPacket(netns, addr); err != nil {
		r.tcp.Close()
		return nil, err
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.work.Go(r.packets)
	r.work.Go(r.connections)
	return r, nil
}

// listenPacket opens a UDP socket inside a network namespace.
func (t *traveller) listenPacket(netns int, addr string) (net.PacketConn, error) {
	a, err := address(addr)
	if err != nil {
		return nil, err
	}
	family, sa := sockaddr(a)
	fd, err := t.socketOf(netns, family, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "name server")
	defer f.Close()
	if err := unix.Bind(fd, sa); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	return net.FilePacketConn(f)
}

// hold remembers what close has to close; false when that has happened.
func (r *relay) hold(c io.Closer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		c.Close()
		return false
	}
	r.open[c] = true
	return true
}

func (r *relay) drop(c io.Closer) {
	r.mu.Lock()
	delete(r.open, c)
	r.mu.Unlock()
	c.Close()
}

// packets serves UDP. A query more than there may be is not answered: the client
// asks again.
func (r *relay) packets() {
	slots := make(chan struct{}, dnsQueries)
	buf := make([]byte, 4096)
	for {
		n, from, err := r.udp.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP answer to something we sent
		}
		select {
		case slots <- struct{}{}:
		default:
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		r.work.Go(func() {
			defer func() { <-slots }()
			for _, s := range r.servers {
				if answer := r.ask(s, query); answer != nil {
					_, _ = r.udp.WriteTo(answer, from)
					return
				}
			}
		})
	}
}

// ask sends one query to one server and returns its answer, or nil.
func (r *relay) ask(server string, query []byte) []byte {
	if len(query) < 12 {
		return nil
	}
	c, err := net.Dial("udp", server)
	if err != nil || !r.hold(c) {
		return nil
	}
	defer r.drop(c)
	_ = c.SetDeadline(time.Now().Add(dnsTimeout / time.Duration(len(r.servers))))
	if _, err := c.Write(query); err != nil {
		return nil
	}
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil
		}
		if n >= 12 && buf[0] == query[0] && buf[1] == query[1] { // the answer has the query's id
			return buf[:n]
		}
	}
}

// connections serves TCP.
func (r *relay) connections() {
	slots := make(chan struct{}, dnsConnections)
	for {
		c, err := r.tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			c.Close()
			continue
		}
		if !r.hold(c) {
			return
		}
		r.work.Go(func() {
			defer func() { r.drop(c); <-slots }()
			dialer := net.Dialer{Timeout: dnsTimeout / time.Duration(len(r.servers))}
			for _, s := range r.servers {
				up, err := dialer.DialContext(r.ctx, "tcp", s)
				if err != nil {
					continue
				}
				if r.hold(up) {
					r.pass(c, up)
				}
				return
			}
		})
	}
}

// pass copies both ways until either side ends or the time is over.
func (r *relay) pass(c, up net.Conn) {
	defer r.drop(up)
	end := time.Now().Add(2 * dnsTimeout)
	_ = c.SetDeadline(end)
	_ = up.SetDeadline(end)
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(c, up)
		c.Close()
	})
	_, _ = io.Copy(up, c)
	up.Close()
	back.Wait()
}

// close ends everything and waits for it.
func (r *relay) close() {
	r.cancel()
	r.udp.Close()
	r.tcp.Close()
	r.mu.Lock()
	r.closed = true
	for c := range r.open {
		c.Close()
	}
	r.mu.Unlock()
	r.work.Wait()
}
