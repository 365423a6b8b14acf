//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// An egress is the way out of a driver's sandboxes: links, addresses, the
// firewall, and the switches that let this host forward for them.
//
// What it changes on the host is its own table and links, and the forwarding of
// single interfaces, never the machine-wide switch. Which interfaces were
// switched is written in the table before it is done: whoever removes the table
// can undo it.
type egress struct {
	mode sandbox.Egress
	log  *slog.Logger
	wall firewall
	host *netlink.Handle
	mtu  int
	res  resolving

	gateway netip.Addr
	known   []string      // what the table's set of switched interfaces has
	free    chan struct{} // closed by close

	mu    sync.Mutex
	next  int             // of the links' numbers
	links map[string]bool // those in use
	clean []netip.Addr    // addresses nobody has and of which no connection is left
	dirty []netip.Addr    // addresses given back
	left  []leaving       // links whose sandbox is gone

	leaves  chan struct{} // somebody leaves
	keeping sync.WaitGroup
}

// A leaving plug goes with its network namespace: the kernel removes the links of many
// at a time, and holds up who makes others once for all of them. What is still there
// after linkLimit, because a connection outlives its process, is removed.
type leaving struct {
	p     *plug
	since time.Time
}

const (
	linkLimit = time.Second
	linkLook  = 50 * time.Millisecond
)

// Each driver has a block of addresses, large enough that one comes round again
// late.
const (
	blockBits    = 19
	refreshEvery = 5 * time.Second
)

// LinksOf is what the names of the links begin with that the driver of a host id makes
// on the host.
func LinksOf(id string) string { return linkPrefix + idHash(id) }

// outsideOf is the name of the link that stands for the outside during the probe.
func outsideOf(id string) string { return "lmx" + idHash(id) }

func idHash(id string) string {
	h := fnv.New32a()
	h.Write([]byte(id))
	s := "00000" + strconv.FormatUint(uint64(h.Sum32()), 36)
	return s[len(s)-5:]
}

// openEgress installs the firewall and then lets the host forward.
func openEgress(id string, mode sandbox.Egress, res resolving, log *slog.Logger) (_ *egress, err error) {
	e := &egress{mode: mode, log: log, res: res, free: make(chan struct{}), leaves: make(chan struct{}, 1), links: map[string]bool{},
		next: int(time.Now().UnixMilli() % (36 * 36 * 36 * 36 * 36))}
	if e.host, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer func() {
		if err != nil {
			e.host.Close()
		}
	}()
	block, err := e.chooseBlock(id)
	if err != nil {
		return nil, err
	}
	last := uint32(1)<<(32-blockBits) - 1
	e.gateway = add(block.Addr(), 1)
	for n := uint32(2); n < last-1; n++ {
		e.clean = append(e.clean, add(block.Addr(), n))
	}
	e.wall = firewall{table: tablePrefix + id, links: LinksOf(id), block: block, probe: add(block.Addr(), last), resolvers: res.direct}
	err = locked(func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		all, err := tables(c)
		if err != nil {
			return err
		}
		var before []string // by a dead daemon with our id
		for _, t := range all {
			if t.Name == e.wall.table {
				if before, err = switchedBy(c, t); err != nil {
					return err
				}
			}
		}
		if err := e.wall.install(before); err != nil {
			return err
		}
		return e.refresh(c)
	})
	if err != nil {
		return nil, errors.Join(err, removeTable(e.wall.table))
	}
	e.keeping.Go(e.keep)
	e.keeping.Go(e.watch)
	return e, nil
}

// locked runs f while no other lambdad of this network namespace is in one.
func locked(f func() error) error {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Flock(int(ns.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock the network namespace: %w", err)
	}
	return f()
}

// chooseBlock finds addresses that this host routes nowhere else.
func (e *egress) chooseBlock(id string) (netip.Prefix, error) {
	routes, err := e.routes()
	if err != nil {
		return netip.Prefix{}, err
	}
	var used []netip.Prefix
	for _, r := range routes {
		if r.dst.Bits() > 0 && !strings.HasPrefix(r.link, linkPrefix) {
			used = append(used, r.dst)
		}
	}
	used = append(used, neverReached()...)
	h := fnv.New32a()
	h.Write([]byte(id))
	for _, space := range prefixes("198.18.0.0/15", "100.64.0.0/10", "10.0.0.0/8") {
		n := uint32(1) << (blockBits - space.Bits())
		for i := range n {
			b := netip.PrefixFrom(add(space.Addr(), (h.Sum32()+i)%n<<(32-blockBits)), blockBits)
			if !slices.ContainsFunc(used, b.Overlaps) {
				return b, nil
			}
		}
	}
	return netip.Prefix{}, errMissing("no private addresses are left that this host does not route")
}

// A route is what matters of one of the host's.
type route struct {
	dst  netip.Prefix
	link string
	mtu  int
}

// routes lists the host's IPv4 routes of every table, one for each way.
func (e *egress) routes() ([]route, error) {
	list, err := whole(func() ([]netlink.Route, error) {
		return e.host.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	links, err := whole(e.host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the host's links: %w", err)
	}
	byIndex := map[int]*netlink.LinkAttrs{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs()
	}
	var out []route
	for _, r := range list {
		dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Dst != nil {
			a, _ := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			dst = netip.PrefixFrom(a.Unmap(), bits)
		}
		ways := []int{r.LinkIndex}
		for _, m := range r.MultiPath {
			ways = append(ways, m.LinkIndex)
		}
		for _, w := range ways {
			if l := byIndex[w]; l != nil {
				out = append(out, route{dst, l.Name, l.MTU})
			}
		}
	}
	return out, nil
}

// uplinks are the interfaces by which sandboxes go out, and their smallest MTU.
func (e *egress) uplinks() ([]string, int, error) {
	routes, err := e.routes()
	if err != nil {
		return nil, 0, err
	}
	var list []string
	mtu := 1500
	for _, r := range routes {
		away := func(p netip.Prefix) bool { return p.Bits() <= r.dst.Bits() && p.Contains(r.dst.Addr()) }
		switch {
		case r.link == "lo" || strings.HasPrefix(r.link, linkPrefix) || strings.HasPrefix(r.link, "lmx"),
			r.dst.Bits() > 0 && slices.ContainsFunc(neverReached(), away),
			r.dst.Bits() > 0 && e.mode == sandbox.EgressInternet && slices.ContainsFunc(privateRanges(), away):
			continue
		}
		if !slices.Contains(list, r.link) {
			list = append(list, r.link)
			mtu = min(mtu, max(r.mtu, 576))
		}
	}
	return list, mtu, nil
}

// machineOff marks a set of switched interfaces: the machine-wide switch was off.
// No interface can be called so.
const machineOff = "/off"

// refresh switches the forwarding of uplinks on that do not forward yet, having
// written that down. The caller holds the lock of the namespace.
func (e *egress) refresh(c *nftables.Conn) error {
	up, mtu, err := e.uplinks()
	if err != nil {
		return err
	}
	all, err := tables(c)
	if err != nil {
		return err
	}
	var own *nftables.Table
	var mine, others []string
	for _, t := range all {
		list, err := switchedBy(c, t)
		if err != nil {
			return err
		}
		if t.Name == e.wall.table {
			own, mine = t, list
		} else {
			others = append(others, list...)
		}
	}
	if own == nil {
		// Somebody flushed all tables: without ours, sandboxes would reach the host.
		e.log.Warn("the nftables table was removed by somebody else and is made again", "table", e.wall.table)
		if err := e.wall.install(e.known); err != nil {
			return err
		}
		own, mine = &nftables.Table{Family: nftables.TableFamilyINet, Name: e.wall.table}, e.known
	}
	set, err := c.GetSetByName(own, setSwitched)
	if err != nil {
		return err
	}
	machine, err := forwarding("all")
	if err != nil {
		return err
	}
	if machine && slices.Contains(mine, machineOff) {
		// The host's owner wants forwarding now: nothing is ours to restrict or undo.
		if err := c.SetDeleteElements(set, names(mine)); err != nil {
			return err
		}
		mine = nil
	}
	var fresh []string
	for _, name := range up {
		on, err := forwarding(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
		if !slices.Contains(mine, name) && (!on || !machine && slices.Contains(others, name)) {
			fresh = append(fresh, name)
		}
	}
	if len(fresh) > 0 {
		marked := fresh
		if !machine && !slices.Contains(mine, machineOff) {
			marked = append(slices.Clone(fresh), machineOff)
		}
		if err := c.SetAddElements(set, names(marked)); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write to set %s of nftables table %s: %w", setSwitched, e.wall.table, err)
	}
	for _, name := range append(fresh, mine...) {
		if slices.Contains(up, name) {
			if err := setForwarding(name, true); err != nil {
				return err
			}
		}
	}
	e.known = slices.Concat(mine, fresh)
	if !machine && len(e.known) > 0 && !slices.Contains(e.known, machineOff) {
		e.known = append(e.known, machineOff)
	}
	e.mu.Lock()
	e.mtu = mtu
	e.mu.Unlock()
	return nil
}

// keep follows the host: uplinks come and go.
func (e *egress) keep() {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	failed := ""
	for {
		select {
		case <-e.free:
			return
		case <-tick.C:
		}
		err := locked(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			return e.refresh(c)
		})
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != failed && text != "" {
			e.log.Warn("could not follow the host's network", "error", text)
		}
		failed = text
	}
}

// watch gives back what plugs had that left, until close and until all are gone.
func (e *egress) watch() {
	for open := true; open; {
		select {
		case <-e.leaves:
		case <-e.free:
			open = false
		}
		for e.gone() > 0 {
			time.Sleep(linkLook)
		}
	}
}

// gone forgets the links that left and are gone, and returns how many are not yet.
func (e *egress) gone() int {
	e.mu.Lock()
	list := e.left
	e.left = nil
	e.mu.Unlock()
	list = slices.DeleteFunc(list, func(l leaving) bool {
		if l.p.there() && time.Since(l.since) < linkLimit {
			return false
		}
		if err := l.p.remove(); err != nil {
			e.log.Warn("a sandbox's link is left", "error", err)
		}
		return true
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left = append(list, e.left...)
	return len(e.left)
}

// forwarding reads the switch of an interface, or of the machine ("all").
func forwarding(name string) (bool, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/forwarding")
	return string(bytes.TrimSpace(b)) == "1", err
}

func setForwarding(name string, on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := writeFile("/proc/sys/net/ipv4/conf/"+name+"/forwarding", value); err != nil {
		return fmt.Errorf("switch forwarding of %s: %w", name, err)
	}
	return nil
}

// removeTable undoes what the table says, then removes it. That there is none is
// fine.
func removeTable(name string) error {
	return locked(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		all, err := tables(c)
		if err != nil {
			if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
				return nil // this kernel has no tables, so there is none of ours
			}
			return err
		}
		var own *nftables.Table
		var mine, others []string
		for _, t := range all {
			list, err := switchedBy(c, t)
			if err != nil {
				return err
			}
			if t.Name == name {
				own, mine = t, list
			} else {
				others = append(others, list...)
			}
		}
		if own == nil {
			return nil
		}
		machine, err := forwarding("all")
		if err != nil {
			return err
		}
		var errs []error
		for _, name := range mine {
			if name == machineOff || slices.Contains(others, name) || machine && slices.Contains(mine, machineOff) {
				continue
			}
			if err := setForwarding(name, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		if len(errs) > 0 {
			return errors.Join(errs...) // the table stays: it says what is still to be undone
		}
		c.DelTable(own)
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove nftables table %s: %w", name, err)
		}
		return nil
	})
}

// sweepLinks removes the links of a dead daemon with the same id; live says which
// are ours.
func sweepLinks(id string, live func(string) bool) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	links, err := whole(h.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		if !strings.HasPrefix(name, LinksOf(id)) && name != outsideOf(id) || live(name) {
			continue
		}
		if err := h.LinkDel(l); err != nil && !vanished(err) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// whole asks the kernel for a list again when it changed while it was read.
func whole[T any](list func() ([]T, error)) (l []T, err error) {
	for range 20 {
		if l, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return l, err
}

// vanished says that a link went by itself, with its namespace.
func vanished(err error) bool { return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) }

// live says whether a link is in use.
func (e *egress) live(name string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.links[name]
}

// close waits for the links that left to be gone, undoes the switches and removes the table.
func (e *egress) close(id string) error {
	close(e.free)
	e.keeping.Wait()
	err := errors.Join(sweepLinks(id, func(string) bool { return false }), removeTable(e.wall.table))
	e.host.Close()
	return err
}

// take returns an address nobody has. Before one comes round again, what
// connections of its last holder the kernel still knows are forgotten.
func (e *egress) take() (netip.Addr, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.clean) == 0 {
		if len(e.dirty) == 0 {
			return netip.Addr{}, errMissing("every address for sandboxes is taken")
		}
		if _, err := e.host.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, flowsOf(e.dirty)); err != nil {
			return netip.Addr{}, fmt.Errorf("forget the connections of earlier sandboxes: %w", err)
		}
		e.clean, e.dirty = e.dirty, nil
	}
	a := e.clean[0]
	e.clean = e.clean[1:]
	return a, nil
}

func (e *egress) give(a netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dirty = append(e.dirty, a)
}

// flows selects connections that come from one of the addresses.
type flows map[netip.Addr]bool

func flowsOf(list []netip.Addr) flows {
	f := flows{}
	for _, a := range list {
		f[a] = true
	}
	return f
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	a, ok := netip.AddrFromSlice(flow.Forward.SrcIP)
	return ok && f[a.Unmap()]
}

// probeLimit is how long the test packet may take.
const probeLimit = 2 * time.Second

// try sends a packet from a sandbox's place to a namespace that stands for the
// outside, and back.
func (e *egress) try(ctx context.Context, t *traveller, id string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	from, err := t.newNetwork()
	if err != nil {
		return err
	}
	defer unix.Close(from)
	p, err := e.plug(t, from, sandbox.EgressAll)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remove()) }()

	out, err := t.newNetwork()
	if err != nil {
		return err
	}
	defer unix.Close(out)
	inside, err := t.netlinkIn(out)
	if err != nil {
		return err
	}
	defer inside.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = outsideOf(id)
	if old, err := e.host.LinkByName(attrs.Name); err == nil {
		_ = e.host.LinkDel(old) // of a daemon that was killed while it tried
	}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(out)}
	if err := e.host.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s: %w", attrs.Name, err)
	}
	defer func() {
		if e := e.host.LinkDel(veth); e != nil && !vanished(e) {
			err = errors.Join(err, e)
		}
	}()
	if err := raise(e.host, veth, e.gateway); err != nil {
		return err
	}
	if err := e.host.RouteAdd(hostRoute(veth, e.wall.probe)); err != nil {
		return fmt.Errorf("route %s: %w", e.wall.probe, err)
	}
	if err := enter(inside, e.wall.probe, e.gateway); err != nil {
		return err
	}
	l, err := t.listen(out, netip.AddrPortFrom(e.wall.probe, 9).String())
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := t.dial(ctx, from, l.Addr().String())
	if err != nil {
		return &blockedError{err}
	}
	return c.Close()
}

// A blockedError says that a packet did not get through.
type blockedError struct{ err error }

func (b *blockedError) Error() string {
	return "a test packet from a sandbox was not forwarded: " + b.err.Error() + culprits()
}
func (b *blockedError) Unwrap() error { return b.err }

// culprits names the firewalls of others that drop what is forwarded.
func culprits() string {
	var list []string
	if c, err := nftables.New(); err == nil {
		chains, _ := c.ListChains()
		for _, ch := range chains {
			hook := ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Table.Family != nftables.TableFamilyBridge
			if hook && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
				list = append(list, fmt.Sprintf("chain %s of table %s drops by default", ch.Name, ch.Table.Name))
			}
			switch {
			case ch.Name == "DOCKER-USER":
				list = append(list, "Docker's rules are there")
			case ch.Name == "ufw-user-forward":
				list = append(list, "ufw's rules are there")
			case ch.Table.Name == "firewalld" && hook:
				list = append(list, "firewalld's rules are there")
			}
		}
	}
	if b, _ := os.ReadFile("/proc/net/ip_tables_names"); bytes.Contains(b, []byte("filter")) {
		list = append(list, "iptables has a filter table")
	}
	if len(list) == 0 {
		return ""
	}
	slices.Sort(list)
	return " (" + strings.Join(slices.Compact(list), ", ") + ")"
}

// promiseEgress opens the way out and proves it. Without proof there is none.
func (d *Driver) promiseEgress(ctx context.Context) []sandbox.Promise {
	mode := d.cfg.Egress
	if mode == "" || mode == sandbox.EgressOff {
		return nil
	}
	p := sandbox.Promise{Name: "outbound network", Kept: true}
	if d.cfg.Rootless {
		p.Kept, p.Why = false, "a user's namespaces are not connected to the host's network; the lambdad endpoint is reached all the same"
		p.Cure = "run lambdad as root"
		return []sandbox.Promise{p}
	}
	e, err := openEgress(d.cfg.ID, mode, d.resolving, d.log)
	if err == nil {
		if err = e.try(ctx, d.traveller, d.cfg.ID); err != nil {
			if undo := e.close(d.cfg.ID); undo != nil {
				d.log.Warn("taking back what outbound network needs", "error", undo)
			}
		}
	}
	if err == nil {
		d.egress = e
		table := sandbox.Promise{Name: "a share of the host's table of connections", Kept: e.wall.unbounded == nil}
		if !table.Kept {
			table.Why = fmt.Sprintf("this kernel does not count connections by sandbox (%v): one that opens very many can fill the table, and cut the host off", e.wall.unbounded)
			table.Cure = "a kernel with nf_tables' connlimit and limit expressions (modprobe nft_connlimit nft_limit), or --egress off"
		}
		return []sandbox.Promise{p, table}
	}
	p.Kept, p.Why = false, err.Error()
	var blocked *blockedError
	links := LinksOf(d.cfg.ID)
	switch {
	case errors.As(err, &blocked):
		p.Cure = fmt.Sprintf("let the host's firewall forward for interfaces %s*: with Docker, iptables -I DOCKER-USER -i %s+ -j ACCEPT and iptables -I DOCKER-USER -o %s+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; otherwise the same in chain FORWARD (ufw: /etc/ufw/before.rules)", links, links, links)
	case errors.Is(err, unix.EROFS):
		p.Cure = "make /proc/sys/net writable (in a container: run it privileged)"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		p.Cure = "give lambdad CAP_NET_ADMIN over its network namespace"
	default:
		p.Cure = "a kernel with nf_tables, its fib, nat and reject expressions, and veth (modprobe nf_tables nft_fib_inet nft_masq nft_reject_inet nft_ct veth)"
	}
	return []sandbox.Promise{p}
}
