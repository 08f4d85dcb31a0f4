package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
)

func (m *machine) scanInputs() {
	devs, _ := filepath.Glob("/dev/input/event*")
	for _, d := range devs {
		m.watchInput(d)
	}
}

var watched = newSet()

// watchInput reads one input device; the power button on it ends the machine.
func (m *machine) watchInput(dev string) {
	if !watched.add(dev) {
		return
	}
	f, err := os.Open(dev)
	if err != nil {
		watched.remove(dev)
		return
	}
	go func() {
		defer watched.remove(dev)
		defer f.Close()
		const size, evKey, keyPower = 24, 1, 116 // struct input_event on 64 bits; linux/input-event-codes.h
		buf := make([]byte, size*16)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			for b := buf[:n]; len(b) >= size; b = b[size:] {
				if binary.NativeEndian.Uint16(b[16:]) == evKey && binary.NativeEndian.Uint16(b[18:]) == keyPower &&
					binary.NativeEndian.Uint32(b[20:]) == 1 {
					m.halt(syscall.LINUX_REBOOT_CMD_POWER_OFF, "power button")
				}
			}
		}
	}()
}
