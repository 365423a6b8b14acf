package main

import (
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// network tries to change what the network of a sandbox is, to speak IPv6 to those
// beside it, and to be somebody else.
func network(r *report) {
	refused := func(what string, err error) {
		r.N++
		if err == nil {
			r.hole("%s", what)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		r.hole("interfaces cannot be listed: %v", err) // and nothing is tried
		return
	}
	for _, l := range links {
		r.Paths = append(r.Paths, l.Name)
		addrs, err := l.Addrs()
		if err != nil {
			r.hole("addresses of %s cannot be listed: %v", l.Name, err)
		}
		for _, a := range addrs {
			if ip := a.(*net.IPNet).IP; ip.To4() == nil && !ip.IsLoopback() {
				r.hole("%s has the address %s", l.Name, ip)
			}
		}
		// Sources that are nobody's can be bound to; nothing may leave with them.
		for _, to := range []string{"ff02::1", "fe80::1", "2001:db8::1"} {
			for _, from := range []string{"::", "fe80::2", "2001:db8::2"} {
				if l.Flags&net.FlagLoopback == 0 {
					refused("IPv6 from "+from+" to "+to+" by "+l.Name, sendIPv6(l.Index, from, to))
				}
			}
		}
		for _, name := range []string{"ipv6/conf/" + l.Name + "/disable_ipv6", "ipv6/conf/all/disable_ipv6", "ipv6/conf/" + l.Name + "/addr_gen_mode"} {
			refused("wrote "+name, os.WriteFile("/proc/sys/net/"+name, []byte("0"), 0))
		}
		for _, name := range []string{"ipv4/conf/" + l.Name + "/forwarding", "ipv4/conf/" + l.Name + "/route_localnet", "ipv4/ip_nonlocal_bind", "ipv4/ip_unprivileged_port_start"} {
			refused("wrote "+name, os.WriteFile("/proc/sys/net/"+name, []byte("1"), 0))
		}
		link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: l.Name, Index: l.Index}}
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
		parse := func(s string) *netlink.Addr {
			a, _ := netlink.ParseAddr(s)
			return a
		}
		refused("another hardware address of "+l.Name, netlink.LinkSetHardwareAddr(link, mac))
		refused(l.Name+" down", netlink.LinkSetDown(link))
		refused("promiscuous "+l.Name, netlink.SetPromiscOn(link))
		refused("another MTU of "+l.Name, netlink.LinkSetMTU(link, 9000))
		refused("another IPv4 address of "+l.Name, netlink.AddrAdd(link, parse("198.18.0.77/32")))
		refused("an IPv6 address of "+l.Name, netlink.AddrAdd(link, parse("fe80::2/64")))
		refused("a neighbour on "+l.Name, netlink.NeighAdd(&netlink.Neigh{LinkIndex: l.Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(169, 254, 169, 254), HardwareAddr: mac}))
		refused("a route by "+l.Name, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Index, Dst: parse("169.254.0.0/16").IPNet, Scope: netlink.SCOPE_LINK}))
		refused("a queue of "+l.Name, netlink.QdiscAdd(netlink.NewPrio(netlink.QdiscAttrs{LinkIndex: l.Index, Parent: netlink.HANDLE_ROOT})))
	}
	refused("a rule", netlink.RuleAdd(func() *netlink.Rule { u := netlink.NewRule(); u.Table = unix.RT_TABLE_MAIN; return u }()))
	for _, l := range []netlink.Link{&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "mine"}}, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "mine"}},
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "mine"}, PeerName: "yours"}} {
		refused("a link of kind "+l.Type(), netlink.LinkAdd(l))
	}
	for what, opt := range map[string][2]int{"IP_TRANSPARENT": {unix.SOL_IP, unix.IP_TRANSPARENT}, "IPV6_TRANSPARENT": {unix.SOL_IPV6, unix.IPV6_TRANSPARENT},
		"SO_MARK": {unix.SOL_SOCKET, unix.SO_MARK}, "SO_PRIORITY": {unix.SOL_SOCKET, unix.SO_PRIORITY}} {
		family, value := unix.AF_INET, 1
		if strings.HasPrefix(what, "IPV6") {
			family = unix.AF_INET6
		}
		if what == "SO_PRIORITY" {
			value = 7 // above what anybody may
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.SetsockoptInt(fd, opt[0], opt[1], value)
			unix.Close(fd)
		}
		refused(what, err)
	}
}

// sendIPv6 sends a datagram by an interface.
func sendIPv6(link int, from, to string) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
	address := func(s string) *unix.SockaddrInet6 {
		return &unix.SockaddrInet6{Port: 9, ZoneId: uint32(link), Addr: [16]byte(net.ParseIP(s).To16())}
	}
	source := address(from)
	source.Port = 0
	if err := unix.Bind(fd, source); err != nil {
		return err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_IF, link)
	return unix.Sendto(fd, []byte("x"), 0, address(to))
}
