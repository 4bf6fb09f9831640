BEGIN TRANSACTION;
CREATE TABLE check_ins (
	run_id VARCHAR(64) NOT NULL, 
	token_hash VARCHAR(128) NOT NULL, 
	used BOOLEAN NOT NULL, 
	PRIMARY KEY (run_id)
);
INSERT INTO "check_ins" VALUES('4b6f9ba27155','db2e624b462a1a492cfacf74ea91ac7bcb45011e0dcd066fc1a253196074b318',1);
INSERT INTO "check_ins" VALUES('d47386f814ba','ae75ed65fba338bd02dd2137170421ab152998a46a69690a2d3aad647509bf6d',1);
INSERT INTO "check_ins" VALUES('bcefc671be01','aa5ac76854b309c77cffa39e62b143e3bcecf40d098f8de040980f65ec602d66',1);
CREATE TABLE desired (
	version INTEGER NOT NULL, 
	body TEXT NOT NULL, 
	applied_at VARCHAR(32) NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "desired" VALUES(1,'{"networks":[{"name":"blue","bridge":"br-blue","subnets":[{"cidr":"10.1.1.0/24","gateway":"10.1.1.1","dhcp":null}],"hosts":[],"domain":"","dns":[],"lease_seconds":86400,"egress":{"default":"allow","rules":[]}}],"routers":[{"name":"r1","networks":["blue"],"uplink":{"bridge":"br-public","addresses":["203.0.113.10/24","203.0.113.11/24"],"gateways":["203.0.113.1"]},"source_nat":["203.0.113.10"],"static_nat":[],"port_forwards":[],"ingress":[],"routes":[],"backend":"nftables","zone":"","labels":{}}],"nodes":[{"name":"n1","zone":"z1","labels":{},"capacity":500},{"name":"n2","zone":"z2","labels":{},"capacity":500}]}','2026-11-21T01:10:25.984+00:00');
CREATE TABLE events (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at VARCHAR(32) NOT NULL, 
	kind VARCHAR(64) NOT NULL, 
	reason VARCHAR(128) NOT NULL, 
	run VARCHAR(64) NOT NULL, 
	router VARCHAR(64) NOT NULL, 
	node VARCHAR(64) NOT NULL, 
	detail TEXT NOT NULL
);
INSERT INTO "events" VALUES(1,'2026-11-21T01:10:25.902+00:00','agent-started','hello','','','n1','life-1');
INSERT INTO "events" VALUES(2,'2026-11-21T01:10:25.940+00:00','agent-started','hello','','','n2','life-1');
INSERT INTO "events" VALUES(3,'2026-11-21T01:10:26.001+00:00','applied','desired-state','','','','4 changes');
INSERT INTO "events" VALUES(4,'2026-11-21T01:10:26.131+00:00','run-started','create','4b6f9ba27155','r1','','create');
INSERT INTO "events" VALUES(5,'2026-11-21T01:10:26.368+00:00','checked-in','accepted','4b6f9ba27155','r1','n1','24 rules, built in 85.5 ms');
INSERT INTO "events" VALUES(6,'2026-11-21T01:10:26.492+00:00','run-done','create','4b6f9ba27155','r1','','');
INSERT INTO "events" VALUES(7,'2026-11-21T01:10:26.566+00:00','run-started','restart','d47386f814ba','r1','','restart parallel');
INSERT INTO "events" VALUES(8,'2026-11-21T01:10:26.640+00:00','checked-in','accepted','d47386f814ba','r1','n1','24 rules, built in 0.7 ms');
INSERT INTO "events" VALUES(9,'2026-11-21T01:10:26.944+00:00','run-done','restart','d47386f814ba','r1','','');
INSERT INTO "events" VALUES(10,'2026-11-21T01:10:26.994+00:00','run-started','restart','bcefc671be01','r1','','restart parallel');
INSERT INTO "events" VALUES(11,'2026-11-21T01:10:27.076+00:00','checked-in','accepted','bcefc671be01','r1','n1','24 rules, built in 0.7 ms');
CREATE TABLE nodes (
	name VARCHAR(64) NOT NULL, 
	inventory TEXT NOT NULL, 
	seen_at FLOAT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "nodes" VALUES('n1','{"node":"n1","agent":"life-1","version":"0.1.0","capabilities":["parallel"],"instances":[],"highest_epochs":[],"type":"inventory"}',1.79522342590330600741e+09);
INSERT INTO "nodes" VALUES('n2','{"node":"n2","agent":"life-1","version":"0.1.0","capabilities":["parallel"],"instances":[],"highest_epochs":[],"type":"inventory"}',1.79522342594922113415e+09);
CREATE TABLE outbox (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	node VARCHAR(64) NOT NULL, 
	body BLOB NOT NULL, 
	expires FLOAT
);
INSERT INTO "outbox" VALUES(8,'n1',X'7B2272756E223A22626365666336373162653031222C22726F75746572223A227231222C2265706F6368223A332C226E6F6465223A226E31222C22617474656D7074223A312C2266697273745F736571223A342C22756E646F223A66616C73652C227374657073223A5B7B226E6F6465223A226E31222C22696E7374616E6365223A7B22726F75746572223A227231222C2267656E65726174696F6E223A327D2C2273706563223A6E756C6C2C226B696E64223A2264657374726F79227D5D2C22746F6B656E223A22222C226F72646572223A342C2276616C69645F73223A6E756C6C2C2274797065223A22636F6D6D616E64227D',NULL);
CREATE TABLE routers (
	router VARCHAR(64) NOT NULL, 
	epoch INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	node VARCHAR(64) NOT NULL, 
	active INTEGER, 
	applied TEXT, 
	failed TEXT NOT NULL, 
	dropped BOOLEAN NOT NULL, 
	PRIMARY KEY (router)
);
INSERT INTO "routers" VALUES('r1',3,3,'n1',2,'{"ref":{"router":"r1","generation":2},"epoch":2,"router":{"name":"r1","networks":["blue"],"uplink":{"bridge":"br-public","addresses":["203.0.113.10/24","203.0.113.11/24"],"gateways":["203.0.113.1"]},"source_nat":["203.0.113.10"],"static_nat":[],"port_forwards":[],"ingress":[],"routes":[],"backend":"nftables","zone":"","labels":{}},"networks":[{"name":"blue","bridge":"br-blue","subnets":[{"cidr":"10.1.1.0/24","gateway":"10.1.1.1","dhcp":null}],"hosts":[],"domain":"","dns":[],"lease_seconds":86400,"egress":{"default":"allow","rules":[]}}],"ports":[{"name":"n0","network":"blue","bridge":"br-blue","mac":"02:9e:da:d6:0f:c2","addresses":["10.1.1.1/24"]},{"name":"u0","network":"","bridge":"br-public","mac":"02:7a:90:38:d4:d5","addresses":["203.0.113.10/24","203.0.113.11/24"]}]}','',0);
CREATE TABLE runs (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(64) NOT NULL, 
	router VARCHAR(64) NOT NULL, 
	terminal BOOLEAN NOT NULL, 
	deadline FLOAT, 
	builds_on VARCHAR(64) NOT NULL, 
	body TEXT NOT NULL, 
	started_at VARCHAR(32) NOT NULL, 
	ended_at VARCHAR(32) NOT NULL, 
	UNIQUE (id)
);
INSERT INTO "runs" VALUES(1,'4b6f9ba27155','r1',1,NULL,'n1','{"id":"4b6f9ba27155","kind":"create","router":"r1","epoch":1,"strategy":null,"status":"done","steps":[],"undo":[],"point_of_no_return":null,"old":null,"new":{"router":"r1","generation":1},"reason":"","detail":"","leftovers":[]}','2026-11-21T01:10:26.075+00:00','2026-11-21T01:10:26.467+00:00');
INSERT INTO "runs" VALUES(2,'d47386f814ba','r1',1,NULL,'n1','{"id":"d47386f814ba","kind":"restart","router":"r1","epoch":2,"strategy":"parallel","status":"done","steps":[],"undo":[],"point_of_no_return":4,"old":{"router":"r1","generation":1},"new":{"router":"r1","generation":2},"reason":"","detail":"","leftovers":[]}','2026-11-21T01:10:26.547+00:00','2026-11-21T01:10:26.943+00:00');
INSERT INTO "runs" VALUES(3,'bcefc671be01','r1',0,1010.0,'n1','{"id":"bcefc671be01","kind":"restart","router":"r1","epoch":3,"strategy":"parallel","status":"running","steps":[],"undo":[],"point_of_no_return":4,"old":{"router":"r1","generation":2},"new":{"router":"r1","generation":3},"reason":"","detail":"","leftovers":[]}','2026-11-21T01:10:26.993+00:00','');
CREATE TABLE steps (
	run_id VARCHAR(64) NOT NULL, 
	undo BOOLEAN NOT NULL, 
	seq INTEGER NOT NULL, 
	step TEXT NOT NULL, 
	progress TEXT NOT NULL, 
	PRIMARY KEY (run_id, undo, seq)
);
INSERT INTO "steps" VALUES('4b6f9ba27155',0,0,'{"node":"n1","spec":{"ref":{"router":"r1","generation":1},"epoch":1,"router":{"name":"r1","networks":["blue"],"uplink":null,"source_nat":[],"static_nat":[],"port_forwards":[],"ingress":[],"routes":[],"backend":"nftables","zone":"","labels":{}},"networks":[],"ports":[]},"leases_from":null,"kind":"build"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('4b6f9ba27155',0,1,'{"instance":{"router":"r1","generation":1},"kind":"await-check-in"}','{"status":"done","attempt":0,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('4b6f9ba27155',0,2,'{"node":"n1","instance":{"router":"r1","generation":1},"kind":"unmute"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('4b6f9ba27155',0,3,'{"node":"n1","instance":{"router":"r1","generation":1},"kind":"announce"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('d47386f814ba',0,0,'{"node":"n1","spec":{"ref":{"router":"r1","generation":2},"epoch":2,"router":{"name":"r1","networks":["blue"],"uplink":null,"source_nat":[],"static_nat":[],"port_forwards":[],"ingress":[],"routes":[],"backend":"nftables","zone":"","labels":{}},"networks":[],"ports":[]},"leases_from":{"router":"r1","generation":1},"kind":"build"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('d47386f814ba',0,1,'{"instance":{"router":"r1","generation":2},"kind":"await-check-in"}','{"status":"done","attempt":0,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('d47386f814ba',0,2,'{"node":"n1","old":{"router":"r1","generation":1},"new":{"router":"r1","generation":2},"kind":"swap"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('d47386f814ba',0,3,'{"node":"n1","instance":{"router":"r1","generation":2},"kind":"announce"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('d47386f814ba',0,4,'{"node":"n1","instance":{"router":"r1","generation":1},"spec":null,"kind":"destroy"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('bcefc671be01',0,0,'{"node":"n1","spec":{"ref":{"router":"r1","generation":3},"epoch":3,"router":{"name":"r1","networks":["blue"],"uplink":{"bridge":"br-public","addresses":["203.0.113.10/24","203.0.113.11/24"],"gateways":["203.0.113.1"]},"source_nat":["203.0.113.10"],"static_nat":[],"port_forwards":[],"ingress":[],"routes":[],"backend":"nftables","zone":"","labels":{}},"networks":[{"name":"blue","bridge":"br-blue","subnets":[{"cidr":"10.1.1.0/24","gateway":"10.1.1.1","dhcp":null}],"hosts":[],"domain":"","dns":[],"lease_seconds":86400,"egress":{"default":"allow","rules":[]}}],"ports":[{"name":"n0","network":"blue","bridge":"br-blue","mac":"02:d8:7d:0f:16:a8","addresses":["10.1.1.1/24"]},{"name":"u0","network":"","bridge":"br-public","mac":"02:e1:2f:81:3e:0e","addresses":["203.0.113.10/24","203.0.113.11/24"]}]},"leases_from":{"router":"r1","generation":2},"kind":"build"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('bcefc671be01',0,1,'{"instance":{"router":"r1","generation":3},"kind":"await-check-in"}','{"status":"done","attempt":0,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('bcefc671be01',0,2,'{"node":"n1","old":{"router":"r1","generation":2},"new":{"router":"r1","generation":3},"kind":"swap"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('bcefc671be01',0,3,'{"node":"n1","instance":{"router":"r1","generation":3},"kind":"announce"}','{"status":"done","attempt":1,"deadline":null,"error":"","result":[]}');
INSERT INTO "steps" VALUES('bcefc671be01',0,4,'{"node":"n1","instance":{"router":"r1","generation":2},"spec":null,"kind":"destroy"}','{"status":"started","attempt":1,"deadline":1010.0,"error":"","result":[]}');
CREATE TABLE timings (
	run_id VARCHAR(64) NOT NULL, 
	undo BOOLEAN NOT NULL, 
	seq INTEGER NOT NULL, 
	timings TEXT NOT NULL, 
	PRIMARY KEY (run_id, undo, seq)
);
INSERT INTO "timings" VALUES('4b6f9ba27155',0,0,'[["total",85.54492400071467]]');
INSERT INTO "timings" VALUES('4b6f9ba27155',0,2,'[["total",0.028202999601489864]]');
INSERT INTO "timings" VALUES('4b6f9ba27155',0,3,'[["total",0.006021000444889069]]');
INSERT INTO "timings" VALUES('d47386f814ba',0,0,'[["total",0.6917419996170793]]');
INSERT INTO "timings" VALUES('d47386f814ba',0,2,'[["total",0.030741999580641277]]');
INSERT INTO "timings" VALUES('d47386f814ba',0,3,'[["total",0.006213998858584091]]');
INSERT INTO "timings" VALUES('d47386f814ba',0,4,'[["total",0.028702999770757742]]');
INSERT INTO "timings" VALUES('bcefc671be01',0,0,'[["total",0.7335890004469547]]');
INSERT INTO "timings" VALUES('bcefc671be01',0,2,'[["total",0.025413000912521966]]');
INSERT INTO "timings" VALUES('bcefc671be01',0,3,'[["total",0.005500000042957254]]');
CREATE TABLE vrha_schema (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "vrha_schema" VALUES(1);
CREATE UNIQUE INDEX one_open_run_per_router ON runs (router) WHERE terminal = 0;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',11);
INSERT INTO "sqlite_sequence" VALUES('runs',3);
INSERT INTO "sqlite_sequence" VALUES('outbox',8);
COMMIT;
