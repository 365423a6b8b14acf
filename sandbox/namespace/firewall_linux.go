//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The firewall is one nftables table for all sandboxes of a driver, made in one
// batch and replaced in one. Its rules know a sandbox by the prefix of its link's
// name, and what it may reach by the link's group, so that making a sandbox
// changes no rule. A link in no group of ours reaches nothing.
//
// Refusals are rejections, so that clients inside fail at once. Only packets with
// a source that is not the sandbox's own, and packets that come for a sandbox
// unasked, are dropped.

// Groups of links: "lmb" and a number, far from those that people choose.
const (
	groupAll      = 0x6c6d6201
	groupInternet = 0x6c6d6202
)

// linkPrefix begins the names of all links of all drivers.
const linkPrefix = "lmb"

// setSwitched is the set of interfaces whose forwarding was switched on for the
// sake of sandboxes. It is what a sweep reads after a crash.
const setSwitched = "switched"

// neverReached are addresses no sandbox reaches: those of the link and of this
// host, several clouds' metadata and platform services, multicast and reserved
// ones.
func neverReached() []netip.Prefix {
	return prefixes("0.0.0.0/8", "100.100.100.200/32", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "224.0.0.0/3")
}

// privateRanges are left out of the internet: they are somebody's own.
func privateRanges() []netip.Prefix {
	return prefixes("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15")
}

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// covered says whether an address lies in one of the prefixes.
func covered(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// A firewall is the description of the table.
type firewall struct {
	table     string
	links     string       // prefix of the names of this driver's links
	block     netip.Prefix // addresses of sandboxes
	probe     netip.Addr   // address within block that stands for the outside when New tries a packet
	resolvers []netip.Addr // name servers: reached on port 53 though they may be private
	unbounded error        // why this kernel does not bound what it tracks; see tracking
}

// Every connection that leaves the host takes an entry in the kernel's table of them,
// for as long as it lives and two minutes more; a packet that nobody answers takes
// one for half a minute. The table is the whole host's, and when it is full the host
// is cut off. So a sandbox has so many at a time as a process inside may have
// descriptors, and may begin a sixteenth of the table at once and as many again in
// two minutes; all of them together, a quarter.
type tracking struct {
	held, burst, all uint32
	rate, allRate    uint64 // per second
}

// trackingOf are the bounds for a table of this size.
func trackingOf(size uint32) tracking {
	const memory = 120 // seconds that the kernel keeps a connection that ended
	b := tracking{held: min(1024, size/16), burst: size / 16, all: size / 4}
	b.rate, b.allRate = uint64(max(b.burst/memory, 1)), uint64(max(b.all/memory, 1))
	return b
}

// trackingSize is how many connections the kernel remembers at most.
func trackingSize() uint32 {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	n, perr := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 32)
	if err != nil || perr != nil {
		return 65_536 // the kernel's own default; the table is not there yet
	}
	return uint32(n)
}

// install makes the table, in place of one with the same name.
func (f *firewall) install(switched []string) error {
	f.unbounded = f.make(switched, true)
	if f.unbounded == nil {
		return nil
	}
	return f.make(switched, false) // a kernel that cannot count connections
}

func (f *firewall) make(switched []string, bounded bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: f.table}
	c.AddTable(t) // so that there is one to remove
	c.DelTable(t)
	c.AddTable(t)
	set := func(name string, list []netip.Prefix) *nftables.Set {
		s := &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
		if e := c.AddSet(s, intervals(list)); e != nil {
			err = errors.Join(err, e)
		}
		return s
	}
	never := set("never", append(neverReached(), f.own()...))
	private := set("private", privateRanges())
	var servers []netip.Prefix
	for _, a := range f.resolvers {
		servers = append(servers, netip.PrefixFrom(a, 32))
	}
	resolvers := set("resolvers", servers)
	meter := func(name string) *nftables.Set {
		s := &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 65_535}
		if e := c.AddSet(s, nil); e != nil {
			err = errors.Join(err, e)
		}
		return s
	}
	var held, begun *nftables.Set
	if bounded {
		held, begun = meter("held"), meter("begun")
	}
	own := &nftables.Set{Table: t, Name: setSwitched, KeyType: nftables.TypeIFName}
	if e := c.AddSet(own, names(switched)); e != nil {
		err = errors.Join(err, e)
	}
	if err != nil {
		return err
	}

	base := func(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority, kind nftables.ChainType) *nftables.Chain {
		accept := nftables.ChainPolicyAccept
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: hook, Priority: prio, Policy: &accept})
	}
	refuse := c.AddChain(&nftables.Chain{Name: "refuse", Table: t})
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	refused := to(expr.VerdictGoto, refuse.Name)
	rule(refuse, l4proto(unix.IPPROTO_TCP), one(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}))
	rule(refuse, one(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}))

	// Before anybody's address translation: the published ports of containers are
	// addresses of the host as well. And before connections are tracked: what is
	// refused costs no entry.
	early := base("early", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainTypeFilter)
	rule(early, iifname(f.links, true), to(expr.VerdictReturn, ""))
	rule(early, family(unix.NFPROTO_IPV4, false), refused)
	rule(early, foreignSource(), to(expr.VerdictDrop, ""))
	rule(early, notUnicast(), refused)
	rule(early, daddr(never, false), refused)

	input := base("input", nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter)
	rule(input, iifname(f.links, false), refused)

	out := c.AddChain(&nftables.Chain{Name: "out", Table: t})
	rule(out, family(unix.NFPROTO_IPV4, false), refused)
	rule(out, daddr(never, false), refused) // translated by others meanwhile?
	rule(out, oifname(linkPrefix, false), refused)
	if bounded {
		b := trackingOf(trackingSize())
		limit := func(rate uint64, burst uint32) expr.Any {
			return &expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Unit: expr.LimitTimeSecond, Burst: burst, Over: true}
		}
		rule(out, begins(), perSource(held, &expr.Connlimit{Count: b.held, Flags: expr.NFT_CONNLIMIT_F_INV}), refused)
		rule(out, begins(), perSource(begun, limit(b.rate, b.burst)), refused)
		rule(out, begins(), one(limit(b.allRate, b.all)), refused)
	}
	rule(out, inGroup(groupAll), to(expr.VerdictAccept, ""))
	rule(out, inGroup(groupInternet, expr.CmpOpNeq), refused)
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		rule(out, daddr(resolvers, false), l4proto(proto), dport(53), to(expr.VerdictAccept, ""))
	}
	rule(out, daddr(private, false), refused)
	rule(out, to(expr.VerdictAccept, ""))

	forward := base("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainTypeFilter)
	rule(forward, iifname(f.links, false), to(expr.VerdictGoto, out.Name))
	rule(forward, oifname(f.links, false), answers(), to(expr.VerdictAccept, ""))
	rule(forward, oifname(f.links, false), to(expr.VerdictDrop, ""))
	// An interface that did not forward before lambdad does so for sandboxes only.
	rule(forward, oifname(linkPrefix, true), one(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}),
		one(&expr.Lookup{SourceRegister: 1, SetName: own.Name, SetID: own.ID}), to(expr.VerdictDrop, ""))

	nat := base("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT)
	rule(nat, family(unix.NFPROTO_IPV4, true), source(f.block), oifname(linkPrefix, true), one(&expr.Masq{}))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make the nftables table %s: %w", f.table, err)
	}
	return nil
}

// own is the block without the address of the probe.
func (f *firewall) own() []netip.Prefix {
	var list []netip.Prefix
	for p := f.block; p.Bits() < 32; {
		low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
		high := netip.PrefixFrom(add(p.Addr(), 1<<(31-p.Bits())), p.Bits()+1)
		if low.Contains(f.probe) {
			list, p = append(list, high), low
		} else {
			list, p = append(list, low), high
		}
	}
	return list
}

// add is the address n after a.
func add(a netip.Addr, n uint32) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
	return netip.AddrFrom4(b)
}

// intervals are the elements of a set of prefixes that do not overlap.
func intervals(list []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range list {
		first := p.Masked().Addr()
		out = append(out, nftables.SetElement{Key: first.AsSlice()})
		if end := add(first, 1<<(32-p.Bits())); end.Compare(first) > 0 { // else it ends with the address space
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// names are the elements of a set of interfaces.
func names(list []string) []nftables.SetElement {
	var out []nftables.SetElement
	for _, n := range list {
		key := make([]byte, unix.IFNAMSIZ)
		copy(key, n)
		out = append(out, nftables.SetElement{Key: key})
	}
	return out
}

// switchedBy reads which interfaces a table says were switched on; none when
// there is no such table.
func switchedBy(c *nftables.Conn, t *nftables.Table) ([]string, error) {
	s, err := c.GetSetByName(t, setSwitched)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read set %s of nftables table %s: %w", setSwitched, t.Name, err)
	}
	elements, err := c.GetSetElements(s)
	if err != nil {
		return nil, fmt.Errorf("read set %s of nftables table %s: %w", setSwitched, t.Name, err)
	}
	var list []string
	for _, e := range elements {
		list = append(list, string(bytes.TrimRight(e.Key, "\x00")))
	}
	return list, nil
}

// tables are those of lambdad on this host, of any driver.
func tables(c *nftables.Conn) ([]*nftables.Table, error) {
	all, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.DeleteFunc(all, func(t *nftables.Table) bool { return !strings.HasPrefix(t.Name, tablePrefix) }), nil
}

const tablePrefix = "lambdad_"

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func to(kind expr.VerdictKind, chain string) []expr.Any {
	return one(&expr.Verdict{Kind: kind, Chain: chain})
}

func op(not bool) expr.CmpOp {
	if not {
		return expr.CmpOpNeq
	}
	return expr.CmpOpEq
}

// iifname matches the beginning of the name of the interface a packet came by.
func iifname(prefix string, not bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: op(not), Register: 1, Data: []byte(prefix)}}
}

// oifname is the same for the interface it leaves by.
func oifname(prefix string, not bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: op(not), Register: 1, Data: []byte(prefix)}}
}

// family matches packets of a protocol family, or those not of it.
func family(f byte, is bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: op(!is), Register: 1, Data: []byte{f}}}
}

func l4proto(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}
}

func dport(port uint16) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)}}
}

// daddr matches IPv4 destinations in a set.
func daddr(s *nftables.Set, not bool) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: not}}
}

// source matches IPv4 sources in a prefix.
func source(p netip.Prefix) []expr.Any {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()}}
}

// inGroup matches the group of the link a packet came by.
func inGroup(g uint32, how ...expr.CmpOp) []expr.Any {
	o := expr.CmpOpEq
	if len(how) > 0 {
		o = how[0]
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: 1}, &expr.Cmp{Op: o, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, g)}}
}

// foreignSource matches a source whose way back is another interface.
func foreignSource() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)}}
}

// notUnicast matches what is not addressed to one other machine: every address of
// this host, broadcast, multicast.
func notUnicast() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_UNICAST)}}
}

// answers matches packets of connections that a sandbox began.
func answers() []expr.Any { return inState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

// begins matches the first packets of connections.
func begins() []expr.Any { return inState(expr.CtStateBitNEW) }

// perSource evaluates e, which has a state, for each IPv4 source by itself.
func perSource(s *nftables.Set, e expr.Any) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Dynset{SrcRegKey: 1, SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_ADD, Exprs: []expr.Any{e}}}
}

func inState(states uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, states), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
}
