package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Memory is what a process occupies, in bytes.
type Memory struct {
	RSS int64 `json:"rss"`
	// PSS counts pages that several processes map in parts. Servers that run side by side map the same program, so
	// theirs is less than that of a server alone.
	PSS       int64 `json:"pss"`
	Anonymous int64 `json:"anonymous"` // its own, and not to be had back from a file
}

// memoryOf reads the memory of some processes and adds it up.
func memoryOf(pids []int) (Memory, error) {
	var m Memory
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return Memory{}, fmt.Errorf("reading the memory of process %d: %w", pid, err)
		}
		fields := keyed(text)
		m.RSS += fields["Rss"] << 10
		m.PSS += fields["Pss"] << 10
		m.Anonymous += fields["Anonymous"] << 10
	}
	return m, nil
}

// medianMemory takes the median of each figure by itself.
func medianMemory(samples []Memory) Memory {
	of := func(figure func(Memory) int64) int64 {
		var values []int64
		for _, m := range samples {
			values = append(values, figure(m))
		}
		return median(values)
	}
	return Memory{
		RSS:       of(func(m Memory) int64 { return m.RSS }),
		PSS:       of(func(m Memory) int64 { return m.PSS }),
		Anonymous: of(func(m Memory) int64 { return m.Anonymous }),
	}
}

// usage is what a process has used since it began.
type usage struct {
	cpu     time.Duration
	written int64 // bytes given to the block layer
}

// userHZ is the unit of CPU times in /proc, per second; Linux fixes it for programs.
const userHZ = 100

// usageOf reads what some processes have used and adds it up.
func usageOf(pids []int) (usage, error) {
	var sum usage
	for _, pid := range pids {
		u, err := usageOfOne(pid)
		if err != nil {
			return usage{}, err
		}
		sum.cpu += u.cpu
		sum.written += u.written
	}
	return sum, nil
}

func usageOfOne(pid int) (usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
	}
	cpu, err := cpuTime(stat)
	if err != nil {
		return usage{}, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
	}
	io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return usage{}, fmt.Errorf("reading what process %d has written: %w", pid, err)
	}
	return usage{cpu, keyed(io)["write_bytes"]}, nil
}

// cpuTime adds utime and stime of /proc/PID/stat.
func cpuTime(stat []byte) (time.Duration, error) {
	// The program's name, in parentheses, may contain spaces.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%d fields in %q", len(fields), stat)
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / userHZ), nil
}

// keyed reads lines of "key: number …"; others are left out.
func keyed(text []byte) map[string]int64 {
	values := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		key, rest, _ := strings.Cut(line, ":")
		if fields := strings.Fields(rest); len(fields) > 0 {
			if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
				values[key] = n
			}
		}
	}
	return values
}
