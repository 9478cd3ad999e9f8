-- The store at revision 2 (SQLite), written by the version that introduced it.
BEGIN TRANSACTION;
CREATE TABLE aliases (
	seq INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	alias TEXT NOT NULL, 
	version TEXT NOT NULL, 
	at TEXT NOT NULL, 
	"by" TEXT NOT NULL, 
	PRIMARY KEY (seq)
);
INSERT INTO "aliases" VALUES(1,'ad_score_predictor','champion','1.0.0','2023-10-01T06:00:00+00:00','ada');
INSERT INTO "aliases" VALUES(2,'ad_score_predictor','champion','1.1.0','2023-10-02T06:00:00+00:00','grace');
CREATE TABLE clock (
	id INTEGER NOT NULL, 
	now TEXT NOT NULL, 
	writer TEXT, 
	lease_until TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "clock" VALUES(1,'2023-10-02T06:00:00+00:00',NULL,NULL);
CREATE TABLE ledger (
	seq INTEGER NOT NULL, 
	at TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	actor TEXT NOT NULL, 
	body TEXT NOT NULL, 
	previous TEXT NOT NULL, 
	hash TEXT NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (hash)
);
INSERT INTO "ledger" VALUES(1,'2023-10-01T06:00:00+00:00','decision','r1','ada','{"files": {"runs/r1/decision.json": "5792c63c2211105f9e2f86732420f527a3c03bfea14f8e1f7e17778eb49783ad"}, "verdict": "deploy", "why": "better by 0.3 – p < 0.01"}','0000000000000000000000000000000000000000000000000000000000000000','c121bc186033658a3de5613a0d73170c6b8c2070ec2604a4cf66ca9fea982906');
INSERT INTO "ledger" VALUES(2,'2023-10-01T06:00:00+00:00','approval','r1','grace','{"by": "grace"}','c121bc186033658a3de5613a0d73170c6b8c2070ec2604a4cf66ca9fea982906','76c72cde0ddcab2e2b33c14475f7f4dc8a40003886df1fcf37d557affeb5c5c8');
INSERT INTO "ledger" VALUES(3,'2023-10-01T06:00:00+00:00','deployment','d1','ada','{"model": "ad_score_predictor", "version": "1.1.0"}','76c72cde0ddcab2e2b33c14475f7f4dc8a40003886df1fcf37d557affeb5c5c8','b82ed575de8b086bbdef73d3034280942b761bcb6c89059e8c30cda6e033cf75');
CREATE TABLE observations (
	seq INTEGER NOT NULL, 
	subject TEXT NOT NULL, 
	metric TEXT NOT NULL, 
	at TEXT NOT NULL, 
	value FLOAT, 
	n INTEGER, 
	labels TEXT NOT NULL, 
	PRIMARY KEY (seq)
);
INSERT INTO "observations" VALUES(1,'ad_score_predictor','rmse','2023-10-01T06:00:00+00:00',0.125,400,'{}');
INSERT INTO "observations" VALUES(2,'ad_score_predictor','rmse','2023-10-02T06:00:00+00:00',NULL,NULL,'{"segment": "söt"}');
CREATE TABLE state (
	kind TEXT NOT NULL, 
	id TEXT NOT NULL, 
	revision INTEGER NOT NULL, 
	at TEXT NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (kind, id)
);
INSERT INTO "state" VALUES('run','r1',2,'2023-10-01T07:00:00+00:00','{"model": "ad_score_predictor", "note": "it''s 100 % – good;\nsecond line", "status": "succeeded"}');
INSERT INTO "state" VALUES('route','ad-score',1,'2023-10-01T06:00:00+00:00','{"champion": "1.0.0"}');
CREATE TABLE store_revision (
	revision INTEGER NOT NULL, 
	within TEXT NOT NULL, 
	PRIMARY KEY (revision)
);
INSERT INTO "store_revision" VALUES(2,'0.1.0');
CREATE TABLE transitions (
	seq INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	id TEXT NOT NULL, 
	revision INTEGER NOT NULL, 
	at TEXT NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (kind, id, revision)
);
INSERT INTO "transitions" VALUES(1,'run','r1',1,'2023-10-01T06:00:00+00:00','{"model": "ad_score_predictor", "status": "running"}');
INSERT INTO "transitions" VALUES(2,'run','r1',2,'2023-10-01T07:00:00+00:00','{"model": "ad_score_predictor", "note": "it''s 100 % – good;\nsecond line", "status": "succeeded"}');
INSERT INTO "transitions" VALUES(3,'route','ad-score',1,'2023-10-01T06:00:00+00:00','{"champion": "1.0.0"}');
CREATE TABLE versions (
	name TEXT NOT NULL, 
	version TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	digest TEXT NOT NULL, 
	at TEXT NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (name, version)
);
INSERT INTO "versions" VALUES('ad_score_predictor','1.0.0',1,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','2023-10-02T06:00:00+00:00','{"lineage": {"snapshot": "2023-10-01"}}');
INSERT INTO "versions" VALUES('ad_score_predictor','1.1.0',2,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','2023-10-02T06:00:00+00:00','{"lineage": {}}');
CREATE INDEX observed ON observations (subject, metric, at);
COMMIT;
