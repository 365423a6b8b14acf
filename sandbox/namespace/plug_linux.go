//go:build amd64 || arm64

package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strconv"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// A plug connects one network namespace.
type plug struct {
	e     *egress
	link  netlink.Link
	addr  netip.Addr
	relay *relay
}

func groupOf(mode sandbox.Egress) uint32 {
	switch mode {
	case sandbox.EgressAll:
		return groupAll
	case sandbox.EgressInternet:
		return groupInternet
	}
	return 0
}

// plug gives a network namespace a link, an address and a way out.
func (e *egress) plug(t *traveller, netns int, mode sandbox.Egress) (_ *plug, err error) {
	inside, err := t.netlinkIn(netns)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	p := &plug{e: e}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("connect a sandbox: %w", err), p.remove())
		}
	}()
	if err := p.make(netns, groupOf(mode)); err != nil {
		return nil, err
	}
	if err := e.address(p); err != nil {
		return nil, err
	}
	if err := enter(inside, p.addr, e.gateway); err != nil {
		return nil, err
	}
	if len(e.res.relayed) > 0 {
		if p.relay, err = newRelay(t, netns, e.res.relayed); err != nil {
			return nil, fmt.Errorf("serve names: %w", err)
		}
	}
	return p, nil
}

// make adds the pair of links.
func (p *plug) make(netns int, group uint32) error {
	e := p.e
	for {
		attrs := netlink.NewLinkAttrs()
		e.mu.Lock()
		attrs.Name = e.wall.links + strconv.FormatInt(int64(e.next), 36)
		e.next++
		attrs.MTU = e.mtu
		e.links[attrs.Name] = true
		e.mu.Unlock()
		attrs.Group = group
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(netns), PeerMTU: uint32(attrs.MTU)}
		err := e.host.LinkAdd(veth)
		if err != nil {
			e.forget(attrs.Name)
		}
		if errors.Is(err, unix.EEXIST) {
			continue // of a dead daemon, not yet swept
		}
		if err != nil {
			return fmt.Errorf("add link %s: %w", attrs.Name, err)
		}
		p.link = veth
		return raise(e.host, veth, e.gateway)
	}
}

func (e *egress) forget(name string) {
	e.mu.Lock()
	delete(e.links, name)
	e.mu.Unlock()
}

// raise makes the host's end of a link the gateway, for IPv4 alone.
func raise(host *netlink.Handle, link netlink.Link, gateway netip.Addr) error {
	name := link.Attrs().Name
	if err := onlyIPv4(link.Attrs().Index); err != nil {
		return fmt.Errorf("let link %s forward IPv4 and have no IPv6 address: %w", name, err)
	}
	if err := host.AddrAdd(link, addr(gateway)); err != nil {
		return fmt.Errorf("give link %s the address %s: %w", name, gateway, err)
	}
	if err := host.LinkSetUp(link); err != nil {
		return fmt.Errorf("switch link %s on: %w", name, err)
	}
	return nil
}

// onlyIPv4 lets a link forward IPv4 and never gives it an IPv6 address. Whoever asks
// for it by /proc/sys spins until nobody else changes the network configuration, which
// cost 2.5 ms of processor time while sandboxes came and went; this waits.
func onlyIPv4(index int) error {
	const (
		inetConf       = 1 // IFLA_INET_CONF
		forwarding     = 1 // IPV4_DEVCONF_FORWARDING
		addrGenMode    = 8 // IFLA_INET6_ADDR_GEN_MODE
		addrGenModeOff = 1 // IN6_ADDR_GEN_MODE_NONE
	)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	families.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil).AddRtAttr(forwarding, nl.Uint32Attr(1))
	if unix.Access("/proc/sys/net/ipv6", unix.F_OK) == nil {
		families.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(addrGenMode, nl.Uint8Attr(addrGenModeOff))
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(families)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// withoutIPv6 switches IPv6 off on an interface, or for those to come ("default").
func withoutIPv6(name string) error {
	err := writeFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", "1")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("switch IPv6 off on %s: %w", name, err)
	}
	return nil
}

// address finds an address that nothing of an earlier sandbox holds: the route to
// it is the claim, and only one link can have it.
func (e *egress) address(p *plug) error {
	for range 1 << (32 - blockBits) {
		a, err := e.take()
		if err != nil {
			return err
		}
		err = e.host.RouteAdd(hostRoute(p.link, a))
		if errors.Is(err, unix.EEXIST) {
			e.give(a)
			continue
		}
		if err != nil {
			e.give(a)
			return fmt.Errorf("route %s to link %s: %w", a, p.link.Attrs().Name, err)
		}
		p.addr = a
		return nil
	}
	return errMissing("every address for sandboxes is taken")
}

func hostRoute(link netlink.Link, a netip.Addr) *netlink.Route {
	return &netlink.Route{LinkIndex: link.Attrs().Index, Dst: addr(a).IPNet, Scope: netlink.SCOPE_LINK}
}

func addr(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}}
}

// enter sets up the end inside.
func enter(inside *netlink.Handle, a, gateway netip.Addr) error {
	link, err := inside.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find the link inside: %w", err)
	}
	if err := inside.AddrAdd(link, addr(a)); err != nil {
		return fmt.Errorf("give the link inside the address %s: %w", a, err)
	}
	if err := inside.LinkSetUp(link); err != nil {
		return fmt.Errorf("switch the link inside on: %w", err)
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := inside.RouteAdd(r); err != nil {
		return fmt.Errorf("add the route out: %w", err)
	}
	return nil
}

// netlinkIn opens a conversation with the kernel about a network namespace, whose
// links to come have no IPv6.
func (t *traveller) netlinkIn(netns int) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := t.do(func() error {
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		if err := withoutIPv6("default"); err != nil {
			return err
		}
		var err error
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil && h != nil {
		h.Close()
	}
	return h, err
}

// narrow changes what may be reached.
func (p *plug) narrow(mode sandbox.Egress) error {
	if err := p.e.host.LinkSetGroup(p.link, int(groupOf(mode))); err != nil {
		return fmt.Errorf("limit link %s: %w", p.link.Attrs().Name, err)
	}
	return nil
}

// remove disconnects at once and gives the address back.
func (p *plug) remove() error {
	if p.relay != nil {
		p.relay.close()
		p.relay = nil
	}
	var err error
	if p.link != nil {
		name := p.link.Attrs().Name
		if p.there() {
			if e := p.e.host.LinkDel(p.link); e != nil && !vanished(e) {
				err = fmt.Errorf("remove link %s: %w", name, e)
			}
		}
		p.e.forget(name)
		p.link = nil
	}
	if p.addr.IsValid() {
		p.e.give(p.addr)
		p.addr = netip.Addr{}
	}
	return err
}

// release is remove for a sandbox without processes whose network namespace is given
// up: nobody has to wait for the kernel.
func (p *plug) release() {
	if p.relay != nil {
		p.relay.close()
		p.relay = nil
	}
	p.e.mu.Lock()
	p.e.left = append(p.e.left, leaving{p, time.Now()})
	p.e.mu.Unlock()
	select {
	case p.e.leaves <- struct{}{}:
	default:
	}
}

// there says whether the link exists. It asks by number: for a name that is not there,
// the kernel would look for a module.
func (p *plug) there() bool {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(s)
	var req struct { // struct ifreq
		name  [16]byte
		index int32
		_     [20]byte
	}
	req.index = int32(p.link.Attrs().Index)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCGIFNAME, uintptr(unsafe.Pointer(&req)))
	return errno == 0 && unix.ByteSliceToString(req.name[:]) == p.link.Attrs().Name
}
