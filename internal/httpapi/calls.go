package httpapi

import (
	"strings"

	"drover/internal/auth"
	"drover/internal/resource"
)

// call is what a procedure does to which kind of object, for permission and for the audit log.
type call struct {
	verb auth.Verb
	kind string
}

// Kinds of objects that have no resource of their own.
const (
	kindEvent    = "event"
	kindAudit    = "audit"
	kindMetric   = "metric"
	kindInstall  = "manager"
	kindBackup   = "manager_backup"
	kindJoin     = "join_token"
	kindOwnToken = "own_token"
	kindSwitch   = "switch"
	kindVault    = "vault"
)

// open procedures answer anybody: they are how one becomes known.
var open = map[string]bool{
	"AuthService/Login":   true,
	"AgentService/Enroll": true,
}

// calls has every procedure that is served, by SERVICE/METHOD.
var calls = func() map[string]call {
	t := map[string]call{
		"HostService/Get": {auth.VerbGet, resource.KindHost}, "HostService/List": {auth.VerbList, resource.KindHost}, "HostService/Watch": {auth.VerbWatch, resource.KindHost},
		"HostService/Update": {auth.VerbUpdate, resource.KindHost}, "HostService/Delete": {auth.VerbDelete, resource.KindHost},
		"HostService/CreateJoinToken":       {auth.VerbCreate, kindJoin},
		"ImageService/ListOperatingSystems": {auth.VerbList, resource.KindImage},
		"SnapshotService/Get":               {auth.VerbGet, resource.KindSnapshot},
		"SnapshotService/List":              {auth.VerbList, resource.KindSnapshot},
		"SnapshotService/Watch":             {auth.VerbWatch, resource.KindSnapshot},
		"SnapshotService/Create":            {auth.VerbOperate, resource.KindSnapshot},
		"SnapshotService/Delete":            {auth.VerbOperate, resource.KindSnapshot},
		"SnapshotService/Revert":            {auth.VerbOperate, resource.KindSnapshot},
		"TaskService/Get":                   {auth.VerbGet, resource.KindTask},
		"TaskService/List":                  {auth.VerbList, resource.KindTask},
		"TaskService/Watch":                 {auth.VerbWatch, resource.KindTask},
		"TaskService/Log":                   {auth.VerbGet, resource.KindTask},
		"TaskService/Cancel":                {auth.VerbOperate, resource.KindTask},
		"EventService/List":                 {auth.VerbList, kindEvent},
		"EventService/Watch":                {auth.VerbWatch, kindEvent},
		"AuditService/List":                 {auth.VerbList, kindAudit},
		"MetricService/Query":               {auth.VerbGet, kindMetric},
		"ManagerService/GetInfo":            {auth.VerbGet, kindInstall},
		"ManagerService/Backup":             {auth.VerbGet, kindBackup},
		"AuthService/Login":                 {auth.VerbCreate, kindOwnToken},
		"AuthService/Logout":                {auth.VerbDelete, kindOwnToken},
		"AuthService/WhoAmI":                {auth.VerbGet, kindOwnToken},
		"AuthService/ListUsers":             {auth.VerbList, resource.KindUser},
		"AuthService/CreateUser":            {auth.VerbCreate, resource.KindUser},
		"AuthService/DeleteUser":            {auth.VerbDelete, resource.KindUser},
		"AuthService/SetPassword":           {auth.VerbUpdate, kindOwnToken}, // others' need more: the handler asks
		"AuthService/ListTokens":            {auth.VerbList, kindOwnToken},   // likewise
		"AuthService/CreateToken":           {auth.VerbCreate, kindOwnToken},
		"AuthService/DeleteToken":           {auth.VerbDelete, kindOwnToken},
		"AgentService/Enroll":               {auth.VerbReport, resource.KindHost},
		"AgentService/Renew":                {auth.VerbReport, resource.KindHost},
		"AgentService/Watch":                {auth.VerbReport, resource.KindVM},
		"AgentService/Report":               {auth.VerbReport, resource.KindHost},
		"VMService/Exec":                    {auth.VerbConsole, resource.KindVM},
		"VMService/Screenshot":              {auth.VerbConsole, resource.KindVM},
		"VMService/Console":                 {auth.VerbConsole, resource.KindVM},
		"VMService/ConsoleLog":              {auth.VerbConsole, resource.KindVM},
		"PortProfileService/Preview":        {auth.VerbGet, resource.KindProfile},
		"PortService/Get":                   {auth.VerbGet, resource.KindPort},
		"PortService/List":                  {auth.VerbList, resource.KindPort},
		"PortService/Watch":                 {auth.VerbWatch, resource.KindPort},
		"PortService/Capture":               {auth.VerbConsole, resource.KindPort}, // it shows what guests say
		"PortService/Trace":                 {auth.VerbGet, resource.KindPort},
		"SwitchService/Show":                {auth.VerbGet, kindSwitch},
		"SwitchService/Table":               {auth.VerbGet, kindSwitch},
		"RepositoryService/Get":             {auth.VerbGet, resource.KindRepository},
		"RepositoryService/List":            {auth.VerbList, resource.KindRepository},
		"RepositoryService/Watch":           {auth.VerbWatch, resource.KindRepository},
		"RepositoryService/Create":          {auth.VerbCreate, resource.KindRepository},
		"RepositoryService/Update":          {auth.VerbUpdate, resource.KindRepository},
		"RepositoryService/Delete":          {auth.VerbDelete, resource.KindRepository},
		"RepositoryService/Rekey":           {auth.VerbUpdate, resource.KindRepository},
		"RepositoryService/Collect":         {auth.VerbOperate, resource.KindRepository},
		"RepositoryService/Scrub":           {auth.VerbOperate, resource.KindRepository},
		"BackupPolicyService/Get":           {auth.VerbGet, resource.KindPolicy},
		"BackupPolicyService/List":          {auth.VerbList, resource.KindPolicy},
		"BackupPolicyService/Watch":         {auth.VerbWatch, resource.KindPolicy},
		"BackupPolicyService/Preview":       {auth.VerbGet, resource.KindPolicy},
		"BackupPolicyService/Create":        {auth.VerbCreate, resource.KindPolicy},
		"BackupPolicyService/Update":        {auth.VerbUpdate, resource.KindPolicy},
		"BackupPolicyService/Delete":        {auth.VerbDelete, resource.KindPolicy},
		"BackupPolicyService/Run":           {auth.VerbOperate, resource.KindPolicy},
		"BackupService/Get":                 {auth.VerbGet, resource.KindPoint},
		"BackupService/List":                {auth.VerbList, resource.KindPoint},
		"BackupService/Watch":               {auth.VerbWatch, resource.KindPoint},
		"BackupService/Protection":          {auth.VerbList, resource.KindPoint},
		"BackupService/Create":              {auth.VerbOperate, resource.KindPoint},
		"BackupService/Update":              {auth.VerbUpdate, resource.KindPoint},
		"BackupService/Delete":              {auth.VerbDelete, resource.KindPoint},
		"BackupService/Copy":                {auth.VerbOperate, resource.KindPoint},
		"BackupService/Restore":             {auth.VerbOperate, resource.KindPoint},
		"BackupService/Test":                {auth.VerbOperate, resource.KindPoint},
		"BackupService/Browse":              {auth.VerbConsole, resource.KindPoint}, // it shows what guests have written
		"BackupService/Download":            {auth.VerbConsole, resource.KindPoint},
		"ProtectionService/CreatePoint":     {auth.VerbOperate, resource.KindVM},
		"ProtectionService/Changed":         {auth.VerbConsole, resource.KindVM},
		"ProtectionService/OpenImport":      {auth.VerbOperate, resource.KindVM},
		"ProtectionService/Release":         {auth.VerbOperate, resource.KindVM},
	}
	// What hosts may ask of a repository that the manager serves. That they have a grant for it, the vault asks.
	for _, method := range []string{
		"Info", "Points", "Begin", "Disk", "Parent", "Offer", "Prove", "Send", "Finish", "Commit", "End", "Touch", "OpenPoint", "Extents", "Changed", "Blocks",
	} {
		t["VaultService/"+method] = call{auth.VerbReport, kindVault}
	}
	for service, kind := range map[string]string{
		"SiteService": resource.KindSite, "DatastoreService": resource.KindDatastore, "NetworkService": resource.KindNetwork, "ImageService": resource.KindImage,
		"VMService": resource.KindVM, "DiskService": resource.KindDisk, "NICService": resource.KindNIC,
		"PortProfileService": resource.KindProfile,
	} {
		t[service+"/Get"], t[service+"/List"], t[service+"/Watch"] = call{auth.VerbGet, kind}, call{auth.VerbList, kind}, call{auth.VerbWatch, kind}
		t[service+"/Create"], t[service+"/Update"], t[service+"/Delete"] = call{auth.VerbCreate, kind}, call{auth.VerbUpdate, kind}, call{auth.VerbDelete, kind}
	}
	for _, method := range []string{"Start", "Stop", "Reset", "Pause", "Resume"} {
		t["VMService/"+method] = call{auth.VerbOperate, resource.KindVM}
	}
	t["VMService/Clone"] = call{auth.VerbCreate, resource.KindVM}
	return t
}()

// lookup finds a procedure such as /drover.v1.VMService/Start. One that isn't in the table is nobody's.
func lookup(procedure string) (name string, c call, ok bool) {
	name = strings.TrimPrefix(procedure, "/drover.v1.")
	c, ok = calls[name]
	return name, c, ok
}

// changes reports whether calls of a verb are written down in the audit log.
func (c call) changes() bool {
	switch c.verb {
	case auth.VerbCreate, auth.VerbUpdate, auth.VerbDelete, auth.VerbOperate, auth.VerbConsole:
		return true
	}
	return c.kind == kindBackup
}
