// Package namespace is the sandbox driver of the root tier: Linux namespaces,
// a root file system of its own, control groups and seccomp.
//
// How a sandbox comes to be. One helper process, the spawner, stands in a mount
// namespace that contains nothing but the template: a read-only root built from
// a list, not from the host's root. It clones the first process of each sandbox,
// a resident init of a few KiB (directory init), into new user, mount, pid, ipc
// and uts namespaces and into the sandbox's control group, from within a network
// namespace made ahead. The init receives programs, lists of system calls, over
// a socket; what they do is decided in this package. It joins the remaining
// groups, mounts proc and its own trees, drops what it does not need, and
// installs the seccomp filter that its children inherit.
//
// Such a shell holds nothing of any owner, so a few are made ahead. Create takes
// one and adds the Spec: trees as detached mounts that the daemon made and the
// init only moves into place, /tmp, limits. Start hands a program to a waiting
// child of the init, which leaves the privileges behind and executes it; the end
// of the child's socket says that it did.
//
// How it ends. The init dies with the daemon's thread that made the spawner
// (parent-death signal), and with it everything in its pid namespace, frozen or
// not where the v2 freezer exists. Destroy kills the init, waits until the
// kernel says that the namespace is empty, and removes the groups and the link.
// Everything else is held by descriptors and has no name on the host. Group
// directories are called lambdad-<id>; Sweep removes those of a dead daemon with
// the same id.
//
// The way out (Config.Egress) is a pair of links for each sandbox, called lmb, a
// hash of the id and a number; one nftables table lambdad_<id> for all of them;
// and the forwarding of the host's uplinks, which is switched back by whoever
// removes the table. egress_linux.go has the links, firewall_linux.go the rules,
// dns_linux.go how names are found. Without proof that packets are filtered and
// forwarded, a sandbox has its loopback alone.
//
// Memory figures: usage_linux.go says how the peak is measured.
package namespace
