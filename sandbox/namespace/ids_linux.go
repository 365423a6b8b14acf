//go:build amd64 || arm64

package namespace

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"sync"
)

// Ids on the host. Each sandbox runs as a uid of its own, because the kernel
// counts inotify instances, keys and pending signals by uid. The uids lie where
// distributions and systemd put nothing (1879048192 to 2147352575), in a block
// chosen by the host id, or in the upper part of what is mapped when the daemon
// itself is in a user namespace. The same numbers are used for groups.
const (
	idsFirst  = 1_879_048_192
	idsBlock  = 32_768
	idsBlocks = 8_000
)

type ids struct {
	// single: only the daemon's own ids are mapped here. All sandboxes have them, and
	// inside there is no root.
	single bool
	group  int // the daemon's own, when single

	root  int // what uid 0 inside is on the host: only inits have it
	first int
	count int
	nonce string

	mu   sync.Mutex
	next int
	used map[int]int // how many sandboxes have it
	made int
}

// newIDs chooses the block. uidMap is the content of /proc/self/uid_map.
func newIDs(hostID, nonce, uidMap string) (*ids, error) {
	h := fnv.New32a()
	h.Write([]byte(hostID))
	base := idsFirst + int(h.Sum32()%idsBlocks)*idsBlock
	var low, high, best int
	for line := range strings.Lines(uidMap) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		inside, err1 := strconv.Atoi(f[0])
		count, err2 := strconv.Atoi(f[2])
		if err1 != nil || err2 != nil {
			continue
		}
		if inside <= base && base+idsBlock <= inside+count {
			return &ids{root: base, first: base + 1, count: idsBlock - 1, nonce: nonce, used: map[int]int{}}, nil
		}
		if count > best {
			best, low, high = count, inside, inside+count
		}
	}
	// In a container's user namespace: the upper half of the largest range.
	n := min((high-low)/2, idsBlock)
	if n < 16 {
		return nil, fmt.Errorf("only %d user ids are mapped here (/proc/self/uid_map): sandboxes need one each", best)
	}
	return &ids{root: high - n, first: high - n + 1, count: n - 1, nonce: nonce, used: map[int]int{}}, nil
}

// singleIDs are those of the rootless tier.
func singleIDs(nonce string, uid, gid int) *ids {
	return &ids{single: true, group: gid, root: uid, first: uid, count: 1, nonce: nonce, used: map[int]int{}}
}

// maps are the contents of uid_map and gid_map for a sandbox that runs as user.
func (i *ids) maps(user int) (uids, gids string) {
	if i.single {
		return fmt.Sprintf("%d %d 1\n", userInside, user), fmt.Sprintf("%d %d 1\n", groupInside, i.group)
	}
	return fmt.Sprintf("0 %d 1\n%d %d 1\n", i.root, userInside, user), fmt.Sprintf("0 %d 1\n%d %d 1\n", i.root, groupInside, user)
}

// take returns an unused uid, the one unused for longest, and a name that no
// other sandbox of this process has or had.
func (i *ids) take() (int, string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.made++
	name := i.nonce + "-" + strconv.Itoa(i.made)
	for {
		id := i.first + i.next
		i.next = (i.next + 1) % i.count
		// With more sandboxes than ids they are shared, which couples no more than
		// the kernel's limits by uid.
		if i.used[id] == 0 || len(i.used) >= i.count {
			i.used[id]++
			return id, name
		}
	}
}

func (i *ids) give(id int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.used[id]--; i.used[id] <= 0 {
		delete(i.used, id)
	}
}
