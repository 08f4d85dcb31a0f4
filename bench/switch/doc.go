// Command switch measures Drover's datapath beside what others use: a plain Linux bridge, Open vSwitch with its userspace datapath, and a bare veth
// pair, which nothing that switches can beat.
//
// Everything happens in namespaces (network, process, mount) of its own; when it ends, however that is, the kernel ends all that it started. Open
// vSwitch is started by it, with a database and sockets in a temporary directory; the machine's own is not touched. It needs root.
//
// # How it compares
//
// All contenders stand at the same time, idle but for the one that is measured. Runs alternate: each round measures every contender once, and every other
// round goes backwards, so that what else the machine does meets all of them. A number is the median of the rounds. The machine should have nothing else
// to do: CPU time is the whole machine's (/proc/stat: user, system, soft and hard interrupts of all processors), since what a switch costs is spent in soft
// interrupts on behalf of whoever runs, and for Open vSwitch in another process.
//
// "CPU of the sender" is what that thread alone spent: a frame goes through a switch in the kernel on its sender's time, up to the receiver's queue. Where the
// machine does have something else to do, these are the numbers to trust.
//
// Loads are threads of this program that make system calls without the Go scheduler between, each on a processor of its own: senders on the first,
// receivers on the second. Round trips have both ends on one processor, so that no wake-up of a sleeping processor is in them. Guests on TAPs are threads
// that read and write frames with a virtio header, as QEMU's do; the reading one looks for 20 µs before it sleeps, as vhost does.
//
// "secure" is Drover with every guard of the built-in profile, "plain" the same datapath with none. Goals are for "secure".
package main
