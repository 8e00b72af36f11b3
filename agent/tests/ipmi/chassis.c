/*
 * Module of OpenIPMI's ipmi_sim for tests: a chassis that only exists in memory. Stock ipmi_sim refuses the diagnostic
 * interrupt, and reaches everything else through a shell script. Each control (by number), each boot option and
 * the time of each identification is added to the file that the module is configured with, when it is carried out.
 */
#include <stdio.h>
#include <string.h>
#include <OpenIPMI/mcserv.h>
#include <OpenIPMI/serv.h>

enum { CHASSIS = 0, GET_STATUS = 1, CONTROL = 2, IDENTIFY = 4, SET_BOOT = 8, OFF = 0, ON = 1, LAST = 5 };
enum { DONE = 0, INVALID_FIELD = 0xcc, WRONG_LENGTH = 0xc7 };

static char journal[4096];
static unsigned char power;

static void note(const char *what, unsigned value)
{
	FILE *file = fopen(journal, "a");

	if (!file)
		return;
	fprintf(file, "%s %u\n", what, value);
	fclose(file);
}

static void status(lmc_data_t *mc, msg_t *msg, unsigned char *reply, unsigned int *length, void *data)
{
	(void)mc, (void)msg, (void)data;
	memset(reply, 0, 4);
	reply[1] = power;
	*length = 4;
}

static void control(lmc_data_t *mc, msg_t *msg, unsigned char *reply, unsigned int *length, void *data)
{
	unsigned action;

	(void)mc, (void)data;
	*length = 1;
	if (msg->len < 1) {
		reply[0] = WRONG_LENGTH;
		return;
	}
	action = msg->data[0] & 0xf;
	if (action > LAST) {
		reply[0] = INVALID_FIELD;
		return;
	}
	if (action == OFF || action == ON)
		power = action;
	note("control", action);
	reply[0] = DONE;
}

static void identify(lmc_data_t *mc, msg_t *msg, unsigned char *reply, unsigned int *length, void *data)
{
	(void)mc, (void)data;
	/* Without a time it is 15 s (IPMI 2.0, section 28.5). */
	note("identify", msg->len < 1 ? 15 : msg->data[0]);
	*length = 1;
	reply[0] = DONE;
}

static void set_boot(lmc_data_t *mc, msg_t *msg, unsigned char *reply, unsigned int *length, void *data)
{
	(void)mc, (void)data;
	*length = 1;
	if (msg->len < 3) {
		reply[0] = WRONG_LENGTH;
		return;
	}
	note("boot", msg->data[2] >> 2 & 0xf);
	reply[0] = DONE;
}

int ipmi_sim_module_init(sys_data_t *sys, const char *options)
{
	int error;

	(void)sys;
	snprintf(journal, sizeof(journal), "%s", options);
	error = ipmi_emu_register_cmd_handler(CHASSIS, GET_STATUS, status, NULL);
	if (!error)
		error = ipmi_emu_register_cmd_handler(CHASSIS, CONTROL, control, NULL);
	if (!error)
		error = ipmi_emu_register_cmd_handler(CHASSIS, IDENTIFY, identify, NULL);
	if (!error)
		error = ipmi_emu_register_cmd_handler(CHASSIS, SET_BOOT, set_boot, NULL);
	return error;
}
