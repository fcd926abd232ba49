package vm

import (
	"fmt"
	"net"
)

// Wire is one end of a cable between two machines, kept by datagrams on
// loopback: it survives the death of either.
type Wire struct {
	Local, Remote int    // UDP ports
	IP            string // of this end, with the length of its prefix
}

// NewWire gives both ends of a cable, 10.9.NET.1 and 10.9.NET.2.
func NewWire(net int) (a, b *Wire, err error) {
	p, err := freePorts("udp", 2)
	if err != nil {
		return nil, nil, err
	}
	return &Wire{p[0], p[1], fmt.Sprintf("10.9.%d.1/24", net)}, &Wire{p[1], p[0], fmt.Sprintf("10.9.%d.2/24", net)}, nil
}

// RawDrive attaches an image as the next virtio disk. Flushes of the machine
// reach no further than this host's page cache, which outlives qemu.
func RawDrive(path string, readOnly bool) string {
	ro := "off"
	if readOnly {
		ro = "on"
	}
	return fmt.Sprintf("-drive if=virtio,format=raw,cache=unsafe,readonly=%s,file=%s", ro, path)
}

// LoggedDrive attaches an image of which every write and every flush is
// recorded in log, an empty file, in the format of dm-log-writes.
func LoggedDrive(path, log string) string {
	return "-blockdev driver=file,filename=" + path + ",node-name=data,cache.no-flush=on" +
		" -blockdev driver=file,filename=" + log + ",node-name=log,cache.no-flush=on" +
		// The head of the log is to be written by flushes alone (writelog.Flushed).
		" -blockdev driver=blklogwrites,file=data,log=log,node-name=logged,log-super-update-interval=1000000000" +
		// qemu misplaces the data of a logged write of zeroes beside another write.
		" -device virtio-blk-pci,drive=logged,discard=off,write-zeroes=off"
}

// freePorts finds n ports on loopback that nobody listens on now.
func freePorts(network string, n int) ([]int, error) {
	var ports []int
	for range n {
		if network == "udp" {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			defer c.Close()
			ports = append(ports, c.LocalAddr().(*net.UDPAddr).Port)
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
