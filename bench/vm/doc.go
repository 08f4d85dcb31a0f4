// Command vm measures what running VMs costs: the way from `vm start` to the guest's first line against the same QEMU
// started by hand, many starts at once, and the memory of the two roles with many VMs.
//
// It makes network, process and mount namespaces for itself and keeps everything under one temporary directory; when it
// ends, however that is, the kernel ends all that it started, and what is left of files is removed. It needs root.
//
// # How it compares
//
// By hand means: this program takes the plan of a VM that the host agent runs (checked against that process's
// arguments), makes TAP, sockets, memory and descriptors like the agent's beforehand, and then starts QEMU as the same
// kind of user with the same arguments. The command that lets the CPUs go waits in the monitor's socket before QEMU is
// there. Its clock starts right before exec. Ours starts right before the API call, and ends when the API's console
// stream brings the line. Runs alternate, so that what else the machine does meets both.
package main
