/* A PKCS#11 module for tests: passes every call on to the module REAL, counts it, and fails where it is told to. */

#include <dlfcn.h>
#include <string.h>

typedef unsigned long word;
typedef word function(word, word, word, word, word, word);

/* CK_FUNCTION_LIST of PKCS#11 2.40: no function has more than six arguments that matter here. */
struct list {
    unsigned char version[2];
    function *functions[68];
};

struct mechanism {
    word type;
    void *parameters;
    word size;
};

/* CK_GCM_PARAMS begins so. */
struct gcm {
    unsigned char *iv;
    word iv_len;
};

enum { FINALIZE = 1, GET_SLOT_LIST = 4, CLOSE_ALL_SESSIONS = 14, LOGOUT = 19, OPEN_SESSION = 12, LOGIN = 18, FIND_OBJECTS_INIT = 26, ENCRYPT_INIT = 29, ENCRYPT = 30, DECRYPT_INIT = 33, DECRYPT = 34 };
enum { OK = 0, MECHANISM_PARAM_INVALID = 0x71 };

/* What the test sets and reads: by the function's number, the code it shall return and how often, and how often it was called. */
word faulty_codes[68];
word faulty_times[68];
word faulty_calls[68];
/* 1: makes its own IV, and wants zeros in its place, as CloudHSM does. 2: wants zeros and leaves them. */
word faulty_iv;

static struct list *real, own;

static int fails(int number) {
    faulty_calls[number]++;
    if (faulty_times[number] == 0)
        return 0;
    faulty_times[number]--;
    return 1;
}

#define PASS(name, number)                                                                                             \
    static word name(word a, word b, word c, word d, word e, word f) {                                                 \
        return fails(number) ? faulty_codes[number] : real->functions[number](a, b, c, d, e, f);                      \
    }
PASS(get_slot_list, GET_SLOT_LIST)
PASS(open_session, OPEN_SESSION)
PASS(log_in, LOGIN)
PASS(find_objects_init, FIND_OBJECTS_INIT)
PASS(encrypt, ENCRYPT)
PASS(decrypt_init, DECRYPT_INIT)
PASS(decrypt, DECRYPT)

static word encrypt_init(word session, word mechanism, word key, word d, word e, word f) {
    static const unsigned char zeros[12];
    struct gcm *parameters = ((struct mechanism *)mechanism)->parameters;
    if (fails(ENCRYPT_INIT))
        return faulty_codes[ENCRYPT_INIT];
    if (faulty_iv != 0 && memcmp(parameters->iv, zeros, sizeof zeros) != 0)
        return MECHANISM_PARAM_INVALID;
    if (faulty_iv == 1)
        memcpy(parameters->iv, "made by HSM!", sizeof zeros);
    return real->functions[ENCRYPT_INIT](session, mechanism, key, d, e, f);
}

word C_GetFunctionList(struct list **list) {
    void *module = dlopen(REAL, RTLD_NOW);
    word (*get)(struct list **) = (word (*)(struct list **))dlsym(module, "C_GetFunctionList");
    word code = get(&real);
    if (code != OK)
        return code;
    own = *real;
    own.functions[GET_SLOT_LIST] = get_slot_list;
    own.functions[OPEN_SESSION] = open_session;
    own.functions[LOGIN] = log_in;
    own.functions[FIND_OBJECTS_INIT] = find_objects_init;
    own.functions[ENCRYPT_INIT] = encrypt_init;
    own.functions[ENCRYPT] = encrypt;
    own.functions[DECRYPT_INIT] = decrypt_init;
    own.functions[DECRYPT] = decrypt;
    *list = &own;
    return OK;
}

/* What may happen to a process without its doing. */
word faulty_close_all_sessions(word slot) { return real->functions[CLOSE_ALL_SESSIONS](slot, 0, 0, 0, 0, 0); }
word faulty_finalize(word slot) { (void)slot; return real->functions[FINALIZE](0, 0, 0, 0, 0, 0); }
word faulty_log_out(word slot) {
    word session, code = real->functions[OPEN_SESSION](slot, 4 /* CKF_SERIAL_SESSION */, 0, 0, (word)&session, 0);
    return code != OK ? code : real->functions[LOGOUT](session, 0, 0, 0, 0, 0);
}
