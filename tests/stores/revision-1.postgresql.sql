-- The store as the first committed version of within made it (PostgreSQL), written by that version itself; pg_dump --inserts without its settings.
CREATE TABLE aliases (
    seq integer NOT NULL,
    name text NOT NULL,
    alias text NOT NULL,
    version text NOT NULL,
    at text NOT NULL,
    by text NOT NULL
);
CREATE SEQUENCE aliases_seq_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE aliases_seq_seq OWNED BY aliases.seq;
CREATE TABLE clock (
    id integer NOT NULL,
    now text NOT NULL,
    writer text,
    lease_until text
);
CREATE SEQUENCE clock_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE clock_id_seq OWNED BY clock.id;
CREATE TABLE ledger (
    seq integer NOT NULL,
    at text NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL,
    actor text NOT NULL,
    body text NOT NULL,
    previous text NOT NULL,
    hash text NOT NULL
);
CREATE TABLE observations (
    seq integer NOT NULL,
    subject text NOT NULL,
    metric text NOT NULL,
    at text NOT NULL,
    value double precision,
    n integer,
    labels text NOT NULL
);
CREATE SEQUENCE observations_seq_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE observations_seq_seq OWNED BY observations.seq;
CREATE TABLE state (
    kind text NOT NULL,
    id text NOT NULL,
    revision integer NOT NULL,
    at text NOT NULL,
    body text NOT NULL
);
CREATE TABLE transitions (
    seq integer NOT NULL,
    kind text NOT NULL,
    id text NOT NULL,
    revision integer NOT NULL,
    at text NOT NULL,
    body text NOT NULL
);
CREATE SEQUENCE transitions_seq_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE transitions_seq_seq OWNED BY transitions.seq;
CREATE TABLE versions (
    name text NOT NULL,
    version text NOT NULL,
    seq integer NOT NULL,
    digest text NOT NULL,
    at text NOT NULL,
    body text NOT NULL
);
ALTER TABLE ONLY aliases ALTER COLUMN seq SET DEFAULT nextval('aliases_seq_seq'::regclass);
ALTER TABLE ONLY clock ALTER COLUMN id SET DEFAULT nextval('clock_id_seq'::regclass);
ALTER TABLE ONLY observations ALTER COLUMN seq SET DEFAULT nextval('observations_seq_seq'::regclass);
ALTER TABLE ONLY transitions ALTER COLUMN seq SET DEFAULT nextval('transitions_seq_seq'::regclass);
INSERT INTO aliases VALUES (1, 'ad_score_predictor', 'champion', '1.0.0', '2023-10-01T06:00:00+00:00', 'ada');
INSERT INTO aliases VALUES (2, 'ad_score_predictor', 'champion', '1.1.0', '2023-10-02T06:00:00+00:00', 'grace');
INSERT INTO clock VALUES (1, '2023-10-02T06:00:00+00:00', NULL, NULL);
INSERT INTO ledger VALUES (1, '2023-10-01T06:00:00+00:00', 'decision', 'r1', 'ada', '{"files": {"runs/r1/decision.json": "5792c63c2211105f9e2f86732420f527a3c03bfea14f8e1f7e17778eb49783ad"}, "verdict": "deploy", "why": "better by 0.3 – p < 0.01"}', '0000000000000000000000000000000000000000000000000000000000000000', 'c121bc186033658a3de5613a0d73170c6b8c2070ec2604a4cf66ca9fea982906');
INSERT INTO ledger VALUES (2, '2023-10-01T06:00:00+00:00', 'approval', 'r1', 'grace', '{"by": "grace"}', 'c121bc186033658a3de5613a0d73170c6b8c2070ec2604a4cf66ca9fea982906', '76c72cde0ddcab2e2b33c14475f7f4dc8a40003886df1fcf37d557affeb5c5c8');
INSERT INTO ledger VALUES (3, '2023-10-01T06:00:00+00:00', 'deployment', 'd1', 'ada', '{"model": "ad_score_predictor", "version": "1.1.0"}', '76c72cde0ddcab2e2b33c14475f7f4dc8a40003886df1fcf37d557affeb5c5c8', 'b82ed575de8b086bbdef73d3034280942b761bcb6c89059e8c30cda6e033cf75');
INSERT INTO observations VALUES (1, 'ad_score_predictor', 'rmse', '2023-10-01T06:00:00+00:00', 0.125, 400, '{}');
INSERT INTO observations VALUES (2, 'ad_score_predictor', 'rmse', '2023-10-02T06:00:00+00:00', NULL, NULL, '{"segment": "söt"}');
INSERT INTO state VALUES ('run', 'r1', 2, '2023-10-01T07:00:00+00:00', '{"model": "ad_score_predictor", "note": "it''s 100 % – good;\nsecond line", "status": "succeeded"}');
INSERT INTO state VALUES ('route', 'ad-score', 1, '2023-10-01T06:00:00+00:00', '{"champion": "1.0.0"}');
INSERT INTO transitions VALUES (1, 'run', 'r1', 1, '2023-10-01T06:00:00+00:00', '{"model": "ad_score_predictor", "status": "running"}');
INSERT INTO transitions VALUES (2, 'run', 'r1', 2, '2023-10-01T07:00:00+00:00', '{"model": "ad_score_predictor", "note": "it''s 100 % – good;\nsecond line", "status": "succeeded"}');
INSERT INTO transitions VALUES (3, 'route', 'ad-score', 1, '2023-10-01T06:00:00+00:00', '{"champion": "1.0.0"}');
INSERT INTO versions VALUES ('ad_score_predictor', '1.0.0', 1, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '2023-10-02T06:00:00+00:00', '{"lineage": {"snapshot": "2023-10-01"}}');
INSERT INTO versions VALUES ('ad_score_predictor', '1.1.0', 2, 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', '2023-10-02T06:00:00+00:00', '{"lineage": {}}');
SELECT pg_catalog.setval('aliases_seq_seq', 2, true);
SELECT pg_catalog.setval('clock_id_seq', 1, false);
SELECT pg_catalog.setval('observations_seq_seq', 2, true);
SELECT pg_catalog.setval('transitions_seq_seq', 3, true);
ALTER TABLE ONLY aliases
    ADD CONSTRAINT aliases_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY clock
    ADD CONSTRAINT clock_pkey PRIMARY KEY (id);
ALTER TABLE ONLY ledger
    ADD CONSTRAINT ledger_hash_key UNIQUE (hash);
ALTER TABLE ONLY ledger
    ADD CONSTRAINT ledger_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY observations
    ADD CONSTRAINT observations_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY state
    ADD CONSTRAINT state_pkey PRIMARY KEY (kind, id);
ALTER TABLE ONLY transitions
    ADD CONSTRAINT transitions_kind_id_revision_key UNIQUE (kind, id, revision);
ALTER TABLE ONLY transitions
    ADD CONSTRAINT transitions_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY versions
    ADD CONSTRAINT versions_pkey PRIMARY KEY (name, version);
CREATE INDEX observed ON observations USING btree (subject, metric, at);
