package backuptest

import (
	"testing"

	"drover/internal/backup"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) backup.Repository { return &Memory{} })
}
